// What follows the attention in a layer.
#pragma once

#include "model.h"

namespace crossrank {

// norm(h + FFN(h)) with h = norm(residual + context Wo).
//
// The feed-forward is four times as wide as the rest. It is computed a slice of `width` columns at a time, which are
// multiplied with their rows of W2 at once: so the activations of many rows stay in the caches, and all of them pass
// each weight. Tiles that multiply narrow models, whose weights stay in the caches anyway, take chunks of rows and the
// feed-forward whole: while a chunk is multiplied with W2, the next one's h is normalized, and while that one's context
// is multiplied with Wo, the results of the one before are.
template <class Kernel>
class LayerEnd {
  using Operand = typename Kernel::Operand;
  static constexpr int64_t kNarrow = 128, kChunkRows = 96;

 public:
  // rows: as many as a run can have.
  LayerEnd(const Shape& shape, int64_t rows)
      : shape_(shape),
        chunk_rows_(in_chunks() ? kChunkRows : round_up(rows, Kernel::kRows)),
        slice_(in_chunks() ? shape.ffn_width : shape.width),
        slice_ld_(in_chunks() ? slice_ + kAlign : slice_),
        sum_(round_up(rows, Kernel::kRows) * shape.width),
        middle_(round_up(rows, Kernel::kRows) * shape.width),
        ffn_(chunk_rows_ * slice_ld_) {}

  // context: [rows][inner], residual: [rows][width], both readable up to a whole number of blocks. Calls write(row,
  // column, vector) for the results.
  template <class Write>
  void run(const Layer<Kernel>& layer, const Operand* context, const float* residual, int64_t rows, Write write) {
    const auto normalize = [&](int64_t row) CROSSRANK_INLINE_LAMBDA { add_and_normalize(layer, row); };
    const auto finish = [&](int64_t row) CROSSRANK_INLINE_LAMBDA {
      layer.output_norm.row(&sum_[row * shape_.width], nullptr, [&](int64_t i, const auto& v) { write(row, i, v); });
    };
    const auto project = [&](int64_t first, int64_t count, auto&& meanwhile) {
      add_product(context + first * shape_.inner, shape_.inner, count, layer.output.weight.all(),
                  residual + first * shape_.width, shape_.width, &sum_[first * shape_.width], shape_.width, meanwhile);
    };
    const auto count_of = [&](int64_t first) { return std::min(chunk_rows_, rows - first); };
    project(0, count_of(0), kNothing);
    for (int64_t row = 0; row < count_of(0); ++row) normalize(row);
    for (int64_t first = 0, before = 0; first < rows; before = first, first += chunk_rows_) {
      const int64_t next = first + chunk_rows_, more = next < rows ? count_of(next) : 0;
      Parts finishing(first - before, steps_of(more, layer.output.weight.all()),
                      [&](int64_t i) CROSSRANK_INLINE_LAMBDA { finish(before + i); });
      if (more) project(next, more, finishing);
      finishing.rest();
      feed_forward(layer, first, count_of(first), more,
                   [&](int64_t i) CROSSRANK_INLINE_LAMBDA { normalize(next + i); });
    }
    for (int64_t row = (rows - 1) / chunk_rows_ * chunk_rows_; row < rows; ++row) finish(row);
  }

 private:
  bool in_chunks() const { return Kernel::kOverlaps && shape_.width <= kNarrow; }

  // h, as an operand and as what the feed-forward is added to.
  CROSSRANK_INLINE void add_and_normalize(const Layer<Kernel>& layer, int64_t row) {
    const int64_t width = shape_.width;
    layer.attention_norm.row(&sum_[row * width], layer.output.bias.get(), [&](int64_t i, auto& v) {
      store(&middle_[row * width + i], v);
      for (int m = 0; m < kAlignVectors; ++m) v[m] += load(layer.down.bias.get() + i + m * kLanes);
      store(&sum_[row * width + i], v);
    });
  }

  template <class Work>
  CROSSRANK_INLINE void feed_forward(const Layer<Kernel>& layer, int64_t row, int64_t rows, int64_t parts, Work work) {
    const int64_t width = shape_.width;
    float* sum = &sum_[row * width];
    for (int64_t first = 0; first < shape_.ffn_width; first += slice_) {
      const int64_t columns = std::min(slice_, shape_.ffn_width - first);
      up(layer.up, first, columns, &middle_[row * width], rows);
      const auto weight = layer.down.weight.rows(first, columns);
      add_product(ffn_.get(), slice_ld_, rows, weight, sum, width, sum, width,
                  Parts(first == 0 ? parts : 0, steps_of(rows, weight), work));
    }
  }

  // Some columns of GELU(h W1).
  void up(const Linear<Kernel>& linear, int64_t first, int64_t columns, const Operand* h, int64_t rows) {
    multiply(h, shape_.width, rows, linear.weight.columns(first, columns), linear.bias.get() + first, kNothing,
             [&](int64_t row, int64_t column, int64_t, const float* c) CROSSRANK_INLINE_LAMBDA {
               constexpr int kVectors = Kernel::kCols / kLanes;
               Vector part[2][kVectors];
               load(c, part[0]);
               load(c + Kernel::kCols, part[1]);
               gelu_in_place(reinterpret_cast<Vector(&)[2 * kVectors]>(part));  // in lockstep
               store(&ffn_[row * slice_ld_ + column], part[0]);
               store(&ffn_[(row + 1) * slice_ld_ + column], part[1]);
             });
  }

  const Shape& shape_;
  int64_t chunk_rows_;
  int64_t slice_;     // columns of the feed-forward at a time
  int64_t slice_ld_;  // from one row of them to the next; no power of two, which would map rows to the same cache lines
  Buffer<float> sum_;       // [rows][width]: before a norm
  Buffer<Operand> middle_;  // [rows][width]: h, as an operand
  Buffer<Operand> ffn_;     // [chunk rows][slice]: some columns of the feed-forward
};

}  // namespace crossrank

// What follows the attention in a layer.
#pragma once

#include "model.h"

namespace crossrank {

// norm(h + FFN(h)) with h = norm(residual + context Wo).
//
// The feed-forward is four times as wide as the rest. It is computed `width` columns at a time, which are multiplied
// with their rows of W2 at once: so the activations of many rows stay in the caches, and all of them pass each weight.
template <class Kernel>
class LayerEnd {
  using Operand = typename Kernel::Operand;

 public:
  // rows: as many as a run can have.
  LayerEnd(const Shape& shape, int64_t rows)
      : shape_(shape),
        sum_(round_up(rows, Kernel::kRows) * shape.width),
        middle_(round_up(rows, Kernel::kRows) * shape.width),
        ffn_(round_up(rows, Kernel::kRows) * shape.width) {}

  // context: [rows][inner], readable up to a whole number of blocks; residual: [rows][width]. Calls write(row, column,
  // vector) for the results.
  template <class Write>
  void run(const Layer<Kernel>& layer, const Operand* context, const float* residual, int64_t rows, Write write) {
    const int64_t width = shape_.width;
    multiply(context, shape_.inner, rows, layer.output.weight.all(), layer.output.bias.get(),
             [&](int64_t row, int64_t column, int64_t wanted, const float* c) {
               for_each_vector<Kernel>(row, column, wanted, c, [&](Vector v, int64_t i, int64_t j) {
                 store(&sum_[i * width + j], v + load(residual + i * width + j));
               });
             });
    for (int64_t row = 0; row < rows; ++row)
      layer.attention_norm.row(&sum_[row * width], [&](int64_t i, Vector v) {
        store(&middle_[row * width + i], v);
        store(&sum_[row * width + i], v + load(layer.down.bias.get() + i));
      });
    for (int64_t first = 0; first < shape_.ffn_width; first += width) {
      const int64_t columns = shape_.ffn_width - first < width ? shape_.ffn_width - first : width;
      up(layer.up, first, columns, rows);
      add_product(ffn_.get(), width, rows, layer.down.weight.rows(first, columns), sum_.get(), width);
    }
    for (int64_t row = 0; row < rows; ++row)
      layer.output_norm.row(&sum_[row * width], [&](int64_t i, Vector v) { write(row, i, v); });
  }

 private:
  // Some columns of GELU(h W1).
  void up(const Linear<Kernel>& linear, int64_t first, int64_t columns, int64_t rows) {
    const int64_t width = shape_.width;
    multiply(middle_.get(), width, rows, linear.weight.columns(first, columns), linear.bias.get() + first,
             [&](int64_t row, int64_t column, int64_t wanted, const float* c) {
               constexpr int kVectors = Kernel::kCols / kLanes, kLockstep = kVectors < 4 ? 4 / kVectors : 1;
               for (int64_t i = 0; i < wanted; i += kLockstep) {
                 Vector part[kLockstep * kVectors];
                 load(c + i * Kernel::kCols, part);
                 gelu_in_place(part);
#pragma GCC unroll 4
                 for (int r = 0; r < kLockstep; ++r)
#pragma GCC unroll 8
                   for (int m = 0; m < kVectors; ++m)
                     store(&ffn_[(row + i + r) * width + column + m * kLanes], part[r * kVectors + m]);
               }
             });
  }

  const Shape& shape_;
  Buffer<float> sum_;       // [rows][width]: before a norm
  Buffer<Operand> middle_;  // [rows][width]: h, as an operand
  Buffer<Operand> ffn_;     // [rows][width]: some columns of the feed-forward
};

}  // namespace crossrank

// Token ids to logits. One Encoder a thread; the model is shared.
#pragma once

#include <type_traits>

#include "attention.h"
#include "last_layer.h"

namespace crossrank {

// Documents pass in groups: whole ones, until kGroupRows rows are reached. Their rows lie one after the other, without
// padding, and every step reads and writes the same few buffers, which stay in the caches. All rows of a group pass a
// weight when it is read: on Zen 5 a MiniLM-L6 took 9% longer with 288 rows (4% in bf16) and as long with 1,152, a
// TinyBERT-L2 2% longer with 288; on Zen 2 a MiniLM took as long with 288.
//
//     ids -> embed -> x [rows][width]
//     each layer but the last:   x -> QKV -> attention -> LayerEnd -> x
//     last layer:                x -> LastLayer, which keeps one row a document -> logits
template <class Kernel>
class Encoder {
  using Operand = typename Kernel::Operand;
  static constexpr bool kExactOperands = std::is_same<Operand, float>::value;
  static constexpr int64_t kGroupRows = 576;
  // Blocks reach beyond the last row; what they find there is finite, and what they make of it is dropped.
  static constexpr int64_t kSlack = Kernel::kRows > Kernel::kCols ? Kernel::kRows : Kernel::kCols;

 public:
  explicit Encoder(const Model<Kernel>& model)
      : model_(model),
        shape_(model.shape),
        attention_(shape_),
        end_(shape_, group_rows()),
        last_(model),
        exact_(group_rows() * shape_.width),
        rounded_(kExactOperands ? 0 : group_rows() * shape_.width),
        qkv_(group_rows() * 3 * shape_.inner),
        context_(group_rows() * shape_.inner),
        sum_(shape_.width) {}

  // The arguments have been checked (api.cpp).
  void score(const int32_t* ids, const int32_t* types, const int64_t* offsets, int64_t pairs, float* logits) {
    for (int64_t start = 0, stop; start < pairs; start = stop) {
      stop = start + 1;
      while (stop < pairs && stop - start < last_.room() && offsets[stop + 1] - offsets[start] <= kGroupRows) ++stop;
      encode(ids, types, offsets + start, stop - start);
      last_.attend(exact_.get(), offsets + start, stop - start);
      if (last_.room() == 0 || stop == pairs) logits += last_.finish(logits);
    }
  }

 private:
  int64_t group_rows() const {
    return (shape_.positions > kGroupRows ? shape_.positions : kGroupRows) + kSlack;
  }

  // All layers but the last.
  void encode(const int32_t* ids, const int32_t* types, const int64_t* offsets, int64_t documents) {
    const int64_t rows = offsets[documents] - offsets[0], ld = 3 * shape_.inner;
    for (int64_t d = 0; d < documents; ++d)
      embed(ids + offsets[d], types + offsets[d], offsets[d + 1] - offsets[d], offsets[d] - offsets[0]);
    for (size_t number = 0; number < model_.layers.size(); ++number) {
      const Layer<Kernel>& layer = model_.layers[number];
      if (multiplies(number))
        multiply_into(qkv_.get(), ld, operand(), shape_.width, rows, layer.qkv.weight.all(),
                      layer.qkv.bias.get());
      for (int64_t d = 0; d < documents; ++d) {
        const int64_t row = offsets[d] - offsets[0];
        attention_.document(&qkv_[row * ld], offsets[d + 1] - offsets[d], &context_[row * shape_.inner]);
      }
      end_.run(layer, context_.get(), exact_.get(), rows,
               [&](int64_t row, int64_t i, const auto& v) { put(row, i, v, multiplies(number + 1)); });
    }
  }

  void embed(const int32_t* ids, const int32_t* types, int64_t length, int64_t row) {
    const int64_t width = shape_.width;
    constexpr int64_t kAhead = 8;  // rows of the word table come from memory
    for (int64_t t = 0; t < length; ++t) {
      if (t + kAhead < length) {
        const float* next = &model_.words[ids[t + kAhead] * width];
        for (int64_t i = 0; i < width; i += 16) __builtin_prefetch(next + i);
        if (!model_.table.empty()) model_.table.prefetch(ids[t + kAhead]);
      }
      const float* word = &model_.words[ids[t] * width];
      const int64_t place = int64_t{types[t]} * shape_.positions + t;
      const float* position = &model_.positions[place * width];
      for (int64_t i = 0; i < width; i += kLanes) store(&sum_[i], load(word + i) + load(position + i));
      const float scale = model_.embedding_norm.row(
          sum_.get(), nullptr, [&](int64_t i, const auto& v) { put(row + t, i, v, multiplies(0)); });
      if (!model_.table.empty()) model_.table.row(ids[t], place, scale, &qkv_[(row + t) * 3 * shape_.inner]);
    }
  }

  // Whether x enters a product of this layer: neither where a table holds the results nor in the last layer.
  bool multiplies(size_t number) const {
    return number < model_.layers.size() && (number > 0 || model_.table.empty());
  }

  // x is kept in fp32, for residuals and the last layer, and where it enters a product, as its operand.
  CROSSRANK_INLINE void put(int64_t row, int64_t column, const Vector (&v)[kAlignVectors], bool enters) {
    store(&exact_[row * shape_.width + column], v);
    if constexpr (!kExactOperands) {
      if (enters) store(&rounded_[row * shape_.width + column], v);
    }
  }
  const Operand* operand() const {
    if constexpr (kExactOperands)
      return exact_.get();
    else
      return rounded_.get();
  }

  const Model<Kernel>& model_;
  const Shape& shape_;
  Attention<Kernel> attention_;
  LayerEnd<Kernel> end_;
  LastLayer last_;
  Buffer<float> exact_;             // x: [group rows][width]
  Buffer<Operand> rounded_;         // the same as operands, [group rows][width], unless they are fp32
  Buffer<Operand> qkv_, context_;   // [group rows][3 * inner], [group rows][inner]
  Buffer<float> sum_;               // [width]
};

}  // namespace crossrank

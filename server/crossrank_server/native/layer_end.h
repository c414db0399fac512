// What follows the attention in a layer.
#pragma once

#include "product.h"

namespace crossrank {

// norm(h + FFN(h)) with h = norm(residual + context Wo): a few rows at a time, so that the wide activations of the
// feed-forward stay in the second-level cache.
template <class Kernel>
class LayerEnd {
  using Operand = typename Kernel::Operand;

 public:
  static constexpr int64_t kRows = round_up(48, Kernel::kRows);

  explicit LayerEnd(const Shape& shape)
      : shape_(shape),
        sum_(kRows * shape.width),
        middle_(kRows * shape.width),
        middle_sum_(kRows * shape.width),
        ffn_(kRows * shape.ffn_width) {}

  // context: [rows][inner], readable up to kRows; residual: [rows][width]; rows <= kRows. Calls write(row, column,
  // vector) for the results.
  template <class Write>
  void run(const Layer<Kernel>& layer, const Operand* context, const float* residual, int64_t rows, Write write) {
    const int64_t width = shape_.width;
    multiply<Kernel>(context, shape_.inner, rows, layer.output, add(residual));
    for (int64_t row = 0; row < rows; ++row)
      layer.attention_norm.row(&sum_[row * width], [&](int64_t i, Vector v) {
        store(&middle_[row * width + i], v);
        store(&middle_sum_[row * width + i], v);
      });
    multiply<Kernel>(middle_.get(), width, rows, layer.up,
                     [&](int64_t row, int64_t column, int64_t wanted, const float* c) {
                       for_each_vector<Kernel>(row, column, wanted, c, [&](Vector v, int64_t i, int64_t j) {
                         store(&ffn_[i * shape_.ffn_width + j], gelu_of(v));
                       });
                     });
    multiply<Kernel>(ffn_.get(), shape_.ffn_width, rows, layer.down, add(middle_sum_.get()));
    for (int64_t row = 0; row < rows; ++row)
      layer.output_norm.row(&sum_[row * width], [&](int64_t i, Vector v) { write(row, i, v); });
  }

 private:
  // Stores a product plus the residual.
  auto add(const float* residual) {
    return [this, residual, width = shape_.width](int64_t row, int64_t column, int64_t wanted, const float* c) {
      for_each_vector<Kernel>(row, column, wanted, c, [&](Vector v, int64_t i, int64_t j) {
        store(&sum_[i * width + j], v + load(residual + i * width + j));
      });
    };
  }

  const Shape& shape_;
  Buffer<float> sum_;         // [kRows][width]: before a norm
  Buffer<Operand> middle_;    // [kRows][width]: between attention and FFN, as an operand
  Buffer<float> middle_sum_;  // the same in fp32, for the residual
  Buffer<Operand> ffn_;       // [kRows][ffn_width]
};

}  // namespace crossrank

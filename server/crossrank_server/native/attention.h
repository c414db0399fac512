// Attention of every token of a document to every other, in all layers but the last.
#pragma once

#include "model.h"

namespace crossrank {

// softmax(Q K^T) V for every head of a document.
//
// A strip of query rows goes through both products while its scores are in the first-level cache:
//
//     Q [strip][head] x K^T panels -> scores [strip][length] -> softmax -> P -> x V panels -> context [strip][head]
//
// The next strip's scores are begun before a strip is finished, as in `multiply`.
template <class Kernel>
class Attention {
  using Operand = typename Kernel::Operand;
  static constexpr int64_t kStrip = Kernel::kRows * (Kernel::kRows < 32 ? 4 : 1);

 public:
  explicit Attention(const Shape& shape)
      : shape_(shape),
        head_room_(round_up(shape.head, kAlign)),
        most_(round_up(shape.positions, kAlign)),
        keys_(head_room_ * most_),
        values_(head_room_ * most_),
        scores_(2 * kStrip * most_),
        weights_(kStrip * most_),
        inverse_sums_(kStrip) {}

  // qkv: [length][3 * inner]; context: [length][inner], written in full.
  void document(const Operand* qkv, int64_t length, Operand* context) {
    const int64_t ld = 3 * shape_.inner;
    for (int64_t h = 0; h < shape_.heads; ++h) {
      const Operand* query = qkv + h * shape_.head_width;
      pack(query + shape_.inner, query + 2 * shape_.inner, ld, length);
      score(query, ld, 0, length);
      for (int64_t row = 0; row < length; row += kStrip) {
        if (row + kStrip < length) score(query, ld, row + kStrip, length);
        finish(row, length, context + row * shape_.inner + h * shape_.head_width);
      }
    }
  }

 private:
  void pack(const Operand* key, const Operand* value, int64_t ld, int64_t length) {
    const int64_t depth = round_up(length, Kernel::kDepth);
    for (int64_t token = 0; token < length; token += Kernel::kCols)
      Kernel::pack_transposed(key + token * ld, ld, shape_.head_width, &keys_[token * head_room_]);
    for (int64_t column = 0; column < shape_.head_width; column += Kernel::kCols)
      Kernel::pack_rows(value + column, ld, length, &values_[column * depth]);
  }

  // The scores of the strip that begins with a row; of two strips there are some at a time.
  float* scores_of(int64_t first) { return &scores_[first / kStrip % 2 * kStrip * most_]; }
  static int64_t rows_of(int64_t first, int64_t length) { return length - first < kStrip ? length - first : kStrip; }

  void score(const Operand* query, int64_t ld, int64_t first, int64_t length) {
    const int64_t padded = round_up(length, kAlign);
    for (int64_t token = 0; token < length; token += Kernel::kCols)
      for (int64_t row = 0; row < rows_of(first, length); row += Kernel::kRows)
        Kernel::block(query + (first + row) * ld, ld, &keys_[token * head_room_], shape_.head_width, nullptr, 0,
                      scores_of(first) + row * padded + token, padded);
  }

  void finish(int64_t first, int64_t length, Operand* context) {
    const int64_t padded = round_up(length, kAlign), depth = round_up(length, Kernel::kDepth);
    const int64_t rows = rows_of(first, length);
    for (int64_t row = 0; row < rows; ++row)
      inverse_sums_[row] = softmax_row(scores_of(first) + row * padded, &weights_[row * padded], length);
    const Panels<Kernel> values{values_.get(), depth, depth, shape_.head_width};
    multiply(weights_.get(), padded, rows, values, nullptr,
             [&](int64_t row, int64_t column, int64_t wanted, const float* c) {
               for_each_vector<Kernel>(row, column, wanted, c, [&](Vector v, int64_t i, int64_t j) {
                 store(context + i * shape_.inner + j, v * inverse_sums_[i]);
               });
             });
  }

  const Shape& shape_;
  int64_t head_room_;  // columns of a head, padded to whole blocks
  int64_t most_;       // tokens of a document, padded
  Buffer<Operand> keys_, values_;
  Buffer<float> scores_;
  Buffer<Operand> weights_;
  Buffer<float> inverse_sums_;
};

}  // namespace crossrank

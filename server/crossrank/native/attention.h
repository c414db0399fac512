// Attention of every token of a document to every other, in all layers but the last.
#pragma once

#include "model.h"

namespace crossrank {

// softmax(Q K^T) V for every head of a document.
//
// A strip of query rows goes through both products while its scores are in the first-level cache:
//
//     Q [strip][head] x K^T panels -> scores [strip][length] -> softmax -> P x V panels -> context [strip][head]
//
// The strips of all heads form one sequence. While vectors compute the softmax of one, tiles multiply the scores of the
// next and the context of the one before.
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
        weights_(2 * kStrip * most_),
        inverse_sums_(2 * kStrip) {}

  // qkv: [length][3 * inner]; context: [length][inner], written in full.
  void document(const Operand* qkv, int64_t length, Operand* context) {
    const Document document{qkv, length, round_up(length, kAlign), round_up(length, Kernel::kDepth)};
    const int64_t strips = (length + kStrip - 1) / kStrip, count = strips * shape_.heads;
    const auto strip = [&](int64_t number) {
      const int64_t first = number % strips * kStrip;
      return Strip{number / strips, first, std::min(length - first, kStrip), number % 2 * kStrip};
    };
    score(document, strip(0), kNothing);
    for (int64_t number = 0; number < count; ++number) {
      const Strip now = strip(number);
      Parts softmax(now.rows,
                    (number + 1 < count ? score_steps(document, strip(number + 1)) : 0) +
                        (number > 0 ? mix_steps(document, strip(number - 1)) : 0),
                    [&](int64_t row) CROSSRANK_INLINE_LAMBDA {
                      const int64_t place = now.buffer + row;
                      inverse_sums_[place] = softmax_row(&scores_[place * document.padded],
                                                         &weights_[place * document.padded], length);
                    });
      if (number + 1 < count) score(document, strip(number + 1), softmax);
      if (number > 0) mix(document, strip(number - 1), context, softmax);
      softmax.rest();
    }
    mix(document, strip(count - 1), context, kNothing);
  }

 private:
  struct Document {
    const Operand* qkv;
    int64_t length, padded, depth;
  };
  struct Strip {
    int64_t head, first, rows;
    int64_t buffer;  // its first row in scores_, weights_ and inverse_sums_, which hold two strips
  };

  int64_t score_steps(const Document& d, const Strip& s) const {
    return steps_of<Kernel>(s.rows, d.length, shape_.head_width);
  }
  int64_t mix_steps(const Document& d, const Strip& s) const {
    return steps_of<Kernel>(s.rows, shape_.head_width, d.depth);
  }

  template <class Meanwhile>
  CROSSRANK_INLINE void score(const Document& d, const Strip& s, Meanwhile&& meanwhile) {
    const int64_t ld = 3 * shape_.inner, head = shape_.head_width;
    if (s.first == 0)
      for (int64_t token = 0; token < d.length; token += Kernel::kCols)
        Kernel::pack_transposed(d.qkv + token * ld + shape_.inner + s.head * head, ld, head,
                                &keys_[token * head_room_]);
    for (int64_t token = 0; token < d.length; token += Kernel::kCols)
      for (int64_t row = 0; row < s.rows; row += Kernel::kRows)
        block_and<Kernel>(d.qkv + (s.first + row) * ld + s.head * head, ld, &keys_[token * head_room_], head, nullptr,
                          0, &scores_[(s.buffer + row) * d.padded + token], d.padded, meanwhile);
  }

  template <class Meanwhile>
  CROSSRANK_INLINE void mix(const Document& d, const Strip& s, Operand* context, Meanwhile&& meanwhile) {
    const int64_t ld = 3 * shape_.inner, head = shape_.head_width;
    if (s.first == 0)
      for (int64_t column = 0; column < head; column += Kernel::kCols)
        Kernel::pack_rows(d.qkv + 2 * shape_.inner + s.head * head + column, ld, d.length, &values_[column * d.depth]);
    const Panels<Kernel> values{values_.get(), d.depth, d.depth, head};
    Operand* to = context + s.first * shape_.inner + s.head * head;
    multiply(&weights_[s.buffer * d.padded], d.padded, s.rows, values, nullptr, meanwhile,
             [&](int64_t row, int64_t column, int64_t wanted, const float* c) CROSSRANK_INLINE_LAMBDA {
               for_each_row<Kernel>(row, wanted, c, [&](auto& v, int64_t i) {
                 for (Vector& part : v) part *= inverse_sums_[s.buffer + i];
                 store(to + i * shape_.inner + column, v);
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

// The first layer's queries, keys and values: looked up by token instead of multiplied.
#pragma once

#include <vector>

#include "elementwise.h"
#include "fma_kernel.h"
#include "product.h"

namespace crossrank {

// What enters the first layer is x = (e C / s) g + b, where e is the sum of a token's embeddings, C subtracts the mean,
// s is the deviation that LayerNorm divides by, and g and b are its weight and bias. So
//
//     x W + bias = (word (C g W) + position (C g W)) / s + (b W + bias)
//
// and all but s is known for every word of the vocabulary and for every position: two rows to add in place of a
// product, rounded less than it would be. The table is `columns` / `width` times as large as that of the words; models
// whose table would be over kMostBytes go without.
template <class Operand>
class TokenTable {
 public:
  static constexpr int64_t kMostBytes = int64_t{64} << 20;

  // Embeddings, both [rows][width], readable up to a whole number of blocks.
  struct Embeddings {
    const float* words;
    int64_t word_rows;
    const float* positions;
    int64_t position_rows;
  };

  static bool pays(int64_t rows, int64_t columns) {
    return rows * columns * static_cast<int64_t>(sizeof(float)) <= kMostBytes;
  }

  TokenTable() = default;

  // weight: [norm.hidden][columns], bias: [columns].
  TokenTable(const Embeddings& embeddings, const LayerNorm& norm, std::vector<float> weight, Buffer<float> bias,
             int64_t columns)
      : columns_(columns), bias_(std::move(bias)) {
    Packed<FmaKernel> centred(norm.padded, columns);
    for (int64_t n = 0; n < columns; ++n) {
      double constant = bias_[n], mean = 0;
      for (int64_t k = 0; k < norm.hidden; ++k) {
        float& w = weight[k * columns + n];
        constant += static_cast<double>(norm.bias[k]) * w;
        w *= norm.weight[k];
        mean += w;
      }
      bias_[n] = static_cast<float>(constant);
      mean /= static_cast<double>(norm.hidden);
      for (int64_t k = 0; k < norm.hidden; ++k)
        centred.set(k, n, static_cast<float>(weight[k * columns + n] - mean));
    }
    words_ = product<Operand>(embeddings.words, embeddings.word_rows, centred, norm.padded);
    positions_ = product<float>(embeddings.positions, embeddings.position_rows, centred, norm.padded);
  }

  bool empty() const { return columns_ == 0; }

  void prefetch(int64_t word) const {
    const auto* row = reinterpret_cast<const char*>(&words_[word * columns_]);
    for (int64_t i = 0; i < columns_ * static_cast<int64_t>(sizeof(Operand)); i += 64) __builtin_prefetch(row + i);
  }

  // Writes the row of a token; scale: 1 / s.
  CROSSRANK_INLINE void row(int64_t word, int64_t position, float scale, Operand* to) const {
    const Operand* first = &words_[word * columns_];
    const float* second = &positions_[position * columns_];
    for (int64_t i = 0; i < columns_; i += kAlign) {
      Vector v[kAlignVectors];
#pragma GCC unroll 8
      for (int m = 0; m < kAlignVectors; ++m) {
        const int64_t at = i + m * kLanes;
        v[m] = (load(first + at) + load(second + at)) * scale + load(bias_.get() + at);
      }
      store(to + i, v);
    }
  }

 private:
  template <class Target>
  Buffer<Target> product(const float* rows, int64_t count, const Packed<FmaKernel>& weight, int64_t width) const {
    Buffer<Target> result(round_up(count, FmaKernel::kRows) * columns_);
    multiply_into(result.get(), columns_, rows, width, count, weight.all(), nullptr);
    return result;
  }

  int64_t columns_ = 0;
  Buffer<Operand> words_;     // [word rows][columns]
  Buffer<float> positions_;   // [position rows][columns]
  Buffer<float> bias_;        // [columns]
};

}  // namespace crossrank

// Matrix product in fp32 by fused multiply-add, one block of C held in registers.
#pragma once

#include "transpose.h"

namespace crossrank {

// A block of C is kRows x kCols: 6 x 2 vectors leave room in 16 registers for two of B and one of A; AVX-512 has 32.
//
// B lies in panels of kCols columns, each row by row:      panel 0            panel 1
//                                                       k=0 n=0..kCols-1 | k=0 n=kCols..
//                                                       k=1 n=0..kCols-1 | ...
// Every element of C is one chain of additions in the order of k, wherever its row lies: results do not depend on what
// else is in the batch.
// Source: K. Goto, R. van de Geijn, Anatomy of high-performance matrix multiplication, 2008.
struct FmaKernel {
  using Operand = float;
  static constexpr int kRows = kLanes == 16 ? 12 : 6;
  static constexpr int kCols = 2 * kLanes;
  static constexpr int kDepth = 1;  // K is a multiple of it
  static constexpr bool kOverlaps = false;  // see TileKernel

  // Where B[k][n] lies within its panel, n < kCols.
  static int64_t panel_offset(int64_t k, int64_t n) { return k * kCols + n; }

  // c[kRows][kCols] (row stride ldc) = a[kRows][depth] (row stride lda) x panel + start[kRows][kCols], none if null.
  // `start` may be c itself, or a bias, whose row stride is 0.
  // Not inlined: what follows the product would take registers from it.
  static CROSSRANK_NOINLINE void block(const float* a, int64_t lda, const float* panel, int64_t depth,
                                       const float* start, int64_t start_ld, float* c, int64_t ldc) {
    Vector left[kRows], right[kRows];
#pragma GCC unroll 12
    for (int i = 0; i < kRows; ++i) {
      left[i] = start ? load(start + i * start_ld) : Vector{};
      right[i] = start ? load(start + i * start_ld + kLanes) : Vector{};
    }
    for (int64_t k = 0; k < depth; ++k) {
      const Vector b0 = load(panel + k * kCols), b1 = load(panel + k * kCols + kLanes);
#pragma GCC unroll 12
      for (int i = 0; i < kRows; ++i) {
        const Vector x = splat(a[i * lda + k]);
        left[i] += x * b0;
        right[i] += x * b1;
      }
    }
#pragma GCC unroll 12
    for (int i = 0; i < kRows; ++i) {
      store(c + i * ldc, left[i]);
      store(c + i * ldc + kLanes, right[i]);
    }
  }

  // Row `token` of B becomes a row of the panel, as it is.
  static CROSSRANK_INLINE void pack_rows(const float* rows, int64_t ld, int64_t length, float* panel) {
    for (int64_t k = 0; k < length; ++k) {
      store(panel + k * kCols, load(rows + k * ld));
      store(panel + k * kCols + kLanes, load(rows + k * ld + kLanes));
    }
  }

  // kCols rows of `depth` floats become columns of a panel.
  static CROSSRANK_INLINE void pack_transposed(const float* rows, int64_t ld, int64_t depth, float* panel);
};

CROSSRANK_INLINE void FmaKernel::pack_transposed(const float* rows, int64_t ld, int64_t depth, float* panel) {
  for (int64_t column = 0; column < kCols; column += kLanes)
    for (int64_t k = 0; k < depth; k += kLanes) {
      UintVector square[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) square[i] = load_as<UintVector>(rows + (column + i) * ld + k);
      transpose(square);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) std::memcpy(panel + (k + i) * kCols + column, &square[i], sizeof(Vector));
    }
}

}  // namespace crossrank

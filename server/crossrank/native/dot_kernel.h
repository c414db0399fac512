// Matrix product in bf16 with fp32 sums by AVX-512's dot products of pairs, one block of C held in registers.
#pragma once

#include "transpose.h"

namespace crossrank {

#if defined(__AVX512BF16__)
// As FmaKernel, but a lane adds two products at a time: a row of a panel holds a pair of k for each of its columns, and
// a row of A is read pair by pair, as it lies.
//
//     panel:   B[0][0] B[1][0]  B[0][1] B[1][1]  ...  B[0][31] B[1][31]
//              B[2][0] B[3][0]  ...
//
// Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, VDPBF16PS.
struct DotKernel {
  using Operand = bf16;
  static constexpr int kRows = 12;
  static constexpr int kCols = 2 * kLanes;
  static constexpr int kDepth = 2;  // K is a multiple of it
  static constexpr bool kOverlaps = false;  // see TileKernel

  static int64_t panel_offset(int64_t k, int64_t n) { return k / 2 * 2 * kCols + n * 2 + k % 2; }

  // c[kRows][kCols] = a[kRows][depth] x panel + start[kRows][kCols]; see FmaKernel::block.
  static CROSSRANK_NOINLINE void block(const bf16* a, int64_t lda, const bf16* panel, int64_t depth,
                                       const float* start, int64_t start_ld, float* c, int64_t ldc) {
    __m512 left[kRows], right[kRows];
#pragma GCC unroll 12
    for (int i = 0; i < kRows; ++i) {
      left[i] = start ? _mm512_loadu_ps(start + i * start_ld) : _mm512_setzero_ps();
      right[i] = start ? _mm512_loadu_ps(start + i * start_ld + kLanes) : _mm512_setzero_ps();
    }
    for (int64_t k = 0; k < depth; k += 2) {
      const __m512bh b0 = load_as<__m512bh>(panel + k * kCols), b1 = load_as<__m512bh>(panel + k * kCols + 2 * kLanes);
#pragma GCC unroll 12
      for (int i = 0; i < kRows; ++i) {
        const auto pair = bits_as<__m512bh>(_mm512_set1_epi32(load_as<int32_t>(a + i * lda + k)));
        left[i] = _mm512_dpbf16_ps(left[i], pair, b0);
        right[i] = _mm512_dpbf16_ps(right[i], pair, b1);
      }
    }
#pragma GCC unroll 12
    for (int i = 0; i < kRows; ++i) {
      _mm512_storeu_ps(c + i * ldc, left[i]);
      _mm512_storeu_ps(c + i * ldc + kLanes, right[i]);
    }
  }

  // Rows 0 .. length of B, kCols columns each, with zeros up to a whole pair.
  static CROSSRANK_INLINE void pack_rows(const bf16* rows, int64_t ld, int64_t length, bf16* panel) {
    for (int64_t k = 0; k < length; k += 2)
      for (int64_t n = 0; n < kCols; n += kLanes) {
        UintVector pairs = widened(load_as<HalfVector>(rows + k * ld + n));
        if (k + 1 < length)
          pairs |= widened(load_as<HalfVector>(rows + (k + 1) * ld + n)) << 16;
        std::memcpy(panel + panel_offset(k, n), &pairs, sizeof pairs);
      }
  }

  // kCols rows of `depth` numbers become columns. A pair of k is one 32-bit word, so that words are transposed.
  static CROSSRANK_INLINE void pack_transposed(const bf16* rows, int64_t ld, int64_t depth, bf16* panel) {
    for (int64_t column = 0; column < kCols; column += kLanes)
      for (int64_t k = 0; k < depth; k += 2 * kLanes) {
        UintVector square[kLanes];
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) square[i] = load_as<UintVector>(rows + (column + i) * ld + k);
        transpose(square);
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i)
          std::memcpy(panel + panel_offset(k + 2 * i, column), &square[i], sizeof square[i]);
      }
  }
};
#endif

}  // namespace crossrank

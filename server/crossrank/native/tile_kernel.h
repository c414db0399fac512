// Matrix product in bf16 with fp32 sums by AMX tiles: a block of C is 2 x 2 tiles.
#pragma once

#include "tiles.h"
#include "transpose.h"

namespace crossrank {

// A is read where it lies, row by row: 16 rows x 32 bf16 fill a tile. B lies in panels of 32 columns, made of tiles of
// 32 k x 16 n, whose rows hold pairs of k (VNNI):
//
//     tile (k / 32, n / 16):   row 0    B[0][0]  B[1][0]   B[0][1]  B[1][1]  ...  B[0][15]  B[1][15]
//                              row 1    B[2][0]  B[3][0]   ...
//                              row 15   B[30][0] B[31][0]  ...                    B[30][15] B[31][15]
//     panel:                   tile (0, 0), tile (0, 1), tile (1, 0), tile (1, 1), ...
template <class Tiles>
struct TileKernel {
  using Operand = bf16;
  static constexpr int kRows = 32;
  static constexpr int kCols = 32;
  static constexpr int kDepth = 32;  // K is a multiple of it
  static constexpr int kTile = 512;  // bf16 in a tile
  static constexpr bool kOverlaps = true;  // vectors can work while a block is multiplied

  static int64_t panel_offset(int64_t k, int64_t n) {
    return (k / 32 * 2 + n / 16) * kTile + k % 32 / 2 * 32 + n % 16 * 2 + k % 2;
  }

  // c[32][32] = a[32][depth] x panel + start[32][32]; see FmaKernel::block. Calls meanwhile() after every kDepth of k,
  // for vectors to work while tiles multiply on.
  template <class Meanwhile>
  static CROSSRANK_INLINE void block(const bf16* a, int64_t lda, const bf16* panel, int64_t depth, const float* start,
                                     int64_t start_ld, float* c, int64_t ldc, Meanwhile&& meanwhile) {
    const int64_t a_bytes = lda * 2, c_bytes = ldc * 4, start_bytes = start_ld * 4;
    if (start) {
      Tiles::template load<0>(start, start_bytes);
      Tiles::template load<1>(start + 16, start_bytes);
      Tiles::template load<2>(start + 16 * start_ld, start_bytes);
      Tiles::template load<3>(start + 16 * start_ld + 16, start_bytes);
    } else {
      Tiles::template zero<0>();
      Tiles::template zero<1>();
      Tiles::template zero<2>();
      Tiles::template zero<3>();
    }
    for (int64_t k = 0; k < depth; k += 32, panel += 2 * kTile) {
      Tiles::template load<4>(a + k, a_bytes);
      Tiles::template load<6>(panel, kTileBytes);
      Tiles::template dot<0, 4, 6>();
      Tiles::template load<7>(panel + kTile, kTileBytes);
      Tiles::template dot<1, 4, 7>();
      Tiles::template load<5>(a + 16 * lda + k, a_bytes);
      Tiles::template dot<2, 5, 6>();
      Tiles::template dot<3, 5, 7>();
      meanwhile();
    }
    Tiles::template store<0>(c, c_bytes);
    Tiles::template store<1>(c + 16, c_bytes);
    Tiles::template store<2>(c + 16 * ldc, c_bytes);
    Tiles::template store<3>(c + 16 * ldc + 16, c_bytes);
  }

  // Rows 0 .. length of B, 32 columns each, with zeros up to a whole tile.
  static CROSSRANK_INLINE void pack_rows(const bf16* rows, int64_t ld, int64_t length, bf16* panel) {
    for (int64_t k = 0; k < round_up(length, 32); k += 2)
      for (int64_t n = 0; n < 32; n += kLanes) {
        UintVector pairs = {};
        if (k < length) pairs = widened(load_as<HalfVector>(rows + k * ld + n));
        if (k + 1 < length)
          pairs |= widened(load_as<HalfVector>(rows + (k + 1) * ld + n)) << 16;
        std::memcpy(panel + panel_offset(k, n), &pairs, sizeof pairs);
      }
  }

  // 32 rows of `depth` numbers become columns. A pair of k is one 32-bit word, so that words are transposed.
  static CROSSRANK_INLINE void pack_transposed(const bf16* rows, int64_t ld, int64_t depth, bf16* panel) {
    for (int64_t column = 0; column < 32; column += kLanes)
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

}  // namespace crossrank

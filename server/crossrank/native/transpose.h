// A square of 32-bit elements, transposed in registers.
#pragma once

#include <utility>

#include "vectors.h"

namespace crossrank {

// Element by element from both: a[first], b[first], a[first + 1], ...
template <int first, size_t... lane>
CROSSRANK_INLINE UintVector interleave(UintVector a, UintVector b, std::index_sequence<lane...>) {
  return __builtin_shufflevector(a, b, (first + static_cast<int>(lane) / 2 + (lane % 2 ? kLanes : 0))...);
}

// kLanes rows of kLanes elements. Each step interleaves the first half of the rows with the second; after log2(kLanes)
// steps row numbers have become lane numbers.
CROSSRANK_INLINE void transpose(UintVector (&rows)[kLanes]) {
  constexpr auto kAll = std::make_index_sequence<kLanes>();
#pragma GCC unroll 4
  for (int step = 1; step < kLanes; step *= 2) {
    UintVector next[kLanes];
#pragma GCC unroll 8
    for (int i = 0; i < kLanes / 2; ++i) {
      next[2 * i] = interleave<0>(rows[i], rows[i + kLanes / 2], kAll);
      next[2 * i + 1] = interleave<kLanes / 2>(rows[i], rows[i + kLanes / 2], kAll);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) rows[i] = next[i];
  }
}

}  // namespace crossrank

// A x B, block by block.
#pragma once

#include <algorithm>
#include <type_traits>

#include "panels.h"

namespace crossrank {

// Calls block(row, column, panel) for each block of a product of `rows` rows. All rows pass a panel while it stays in
// the first caches; meanwhile the next one is fetched, a share with each block: the weights of a wide model come from
// memory, for which products would else wait (README.md).
template <class Kernel, class Block>
CROSSRANK_INLINE void for_each_block(int64_t rows, const Panels<Kernel>& b, Block block) {
  const int64_t lines = b.depth * Kernel::kCols * static_cast<int64_t>(sizeof *b.first) / 64;
  const int64_t share = std::min(lines, lines * Kernel::kRows / rows + 1);
  for (int64_t column = 0; column < b.columns; column += Kernel::kCols) {
    const auto* panel = b.panel(column);
    auto next = reinterpret_cast<const char*>(b.panel(column + Kernel::kCols));
    for (int64_t row = 0; row < rows; row += Kernel::kRows, next += 64 * share) {
      for (int64_t line = 0; line < share; ++line) __builtin_prefetch(next + 64 * line, 0, 2);
      block(row, column, panel);
    }
  }
}

// Multiplies rows of A with B, and calls finish(row, column, rows, c) for each block of the result: c is fp32
// [kRows][kCols], of which the first `rows` rows are wanted, and may be changed. A must be readable up to a whole
// number of blocks.
//
// A block is finished after the next one has begun: tiles multiply while vectors finish (2 to 4% of a TinyBERT-L2 with
// AMX).
template <class Kernel, class Finish>
CROSSRANK_INLINE void multiply(const typename Kernel::Operand* a, int64_t lda, int64_t rows, const Panels<Kernel>& b,
                               const float* bias, Finish finish) {
  alignas(64) float c[2][Kernel::kRows * Kernel::kCols];
  struct {
    int64_t row = -1, column = 0;
  } last;
  int next = 0;
  const auto finish_last = [&] {
    if (last.row < 0) return;
    const int64_t left = rows - last.row;
    finish(last.row, last.column, left < Kernel::kRows ? left : int64_t{Kernel::kRows}, c[1 - next]);
  };
  for_each_block(rows, b, [&](int64_t row, int64_t column, const typename Kernel::Operand* panel) {
    Kernel::block(a + row * lda, lda, panel, b.depth, bias ? bias + column : nullptr, 0, c[next], Kernel::kCols);
    finish_last();
    last.row = row;
    last.column = column;
    next = 1 - next;
  });
  finish_last();
}

// c[rows][columns] += A x B. C must be writable up to a whole number of blocks.
template <class Kernel>
CROSSRANK_INLINE void add_product(const typename Kernel::Operand* a, int64_t lda, int64_t rows,
                                  const Panels<Kernel>& b, float* c, int64_t ldc) {
  for_each_block(rows, b, [&](int64_t row, int64_t column, const typename Kernel::Operand* panel) {
    float* at = c + row * ldc + column;
    Kernel::block(a + row * lda, lda, panel, b.depth, at, ldc, at, ldc);
  });
}

// For `finish`: f(vector, row, column) on every vector of the wanted rows of a block.
template <class Kernel, class Function>
CROSSRANK_INLINE void for_each_vector(int64_t row, int64_t column, int64_t rows, const float* c, Function f) {
  for (int64_t i = 0; i < rows; ++i)
#pragma GCC unroll 4
    for (int64_t j = 0; j < Kernel::kCols; j += kLanes) f(load(c + i * Kernel::kCols + j), row + i, column + j);
}

// target[rows][columns] = A x B + bias, in the target's type. The target must be writable up to a whole number of
// blocks.
template <class Kernel, class Target>
CROSSRANK_INLINE void multiply_into(Target* target, int64_t ld, const typename Kernel::Operand* a, int64_t lda,
                                    int64_t rows, const Panels<Kernel>& b, const float* bias) {
  if constexpr (std::is_same<Target, float>::value) {
    for_each_block(rows, b, [&](int64_t row, int64_t column, const typename Kernel::Operand* panel) {
      Kernel::block(a + row * lda, lda, panel, b.depth, bias ? bias + column : nullptr, 0, target + row * ld + column,
                    ld);
    });
  } else {
    multiply(a, lda, rows, b, bias, [&](int64_t row, int64_t column, int64_t wanted, const float* c) {
      for_each_vector<Kernel>(row, column, wanted, c,
                              [&](Vector v, int64_t i, int64_t j) { store(target + i * ld + j, v); });
    });
  }
}

}  // namespace crossrank

// A x B, block by block.
#pragma once

#include "model.h"

namespace crossrank {

// Multiplies rows of A with panels of B, and calls finish(row, column, rows, c) for each block of the result: c is fp32
// [kRows][kCols], of which the first `rows` rows are wanted. A panel stays in the first-level cache while all rows pass.
// A must be readable up to a whole number of blocks.
template <class Kernel, class Finish>
CROSSRANK_INLINE void multiply(const typename Kernel::Operand* a, int64_t lda, int64_t rows,
                               const typename Kernel::Operand* panels, int64_t depth, int64_t columns,
                               const float* bias, Finish finish) {
  alignas(64) float c[Kernel::kRows * Kernel::kCols];
  for (int64_t column = 0; column < columns; column += Kernel::kCols)
    for (int64_t row = 0; row < rows; row += Kernel::kRows) {
      Kernel::block(a + row * lda, lda, panels + column * depth, depth, bias ? bias + column : nullptr, c,
                    Kernel::kCols);
      finish(row, column, rows - row < Kernel::kRows ? rows - row : int64_t{Kernel::kRows}, c);
    }
}

template <class Kernel, class Finish>
CROSSRANK_INLINE void multiply(const typename Kernel::Operand* a, int64_t lda, int64_t rows,
                               const Linear<Kernel>& linear, Finish finish) {
  multiply<Kernel>(a, lda, rows, linear.weight.panel(0), linear.weight.depth(), linear.weight.columns(),
                   linear.bias.get(), finish);
}

// For `finish`: f(vector, row, column) on every vector of the wanted rows of a block.
template <class Kernel, class Function>
CROSSRANK_INLINE void for_each_vector(int64_t row, int64_t column, int64_t rows, const float* c, Function f) {
  for (int64_t i = 0; i < rows; ++i)
#pragma GCC unroll 4
    for (int64_t j = 0; j < Kernel::kCols; j += kLanes) f(load(c + i * Kernel::kCols + j), row + i, column + j);
}

// A `finish` that stores a product as it is, in rows of `ld` columns.
template <class Kernel, class Target>
auto store_into(Target* target, int64_t ld) {
  return [=](int64_t row, int64_t column, int64_t wanted, const float* c) {
    for_each_vector<Kernel>(row, column, wanted, c,
                            [&](Vector v, int64_t i, int64_t j) { store(target + i * ld + j, v); });
  };
}

}  // namespace crossrank

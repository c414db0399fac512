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

// Work in parts, handed out evenly over the steps of products (block_and): vectors work while tiles multiply.
template <class Work>
class Parts {
 public:
  Parts(int64_t parts, int64_t steps, Work work) : parts_(parts), steps_(steps), work_(work) {}
  CROSSRANK_INLINE void operator()() {
    for (++step_; done_ * steps_ < step_ * parts_; ++done_) work_(done_);
  }
  CROSSRANK_INLINE void rest() {
    for (; done_ < parts_; ++done_) work_(done_);
  }

 private:
  int64_t parts_, steps_, step_ = 0, done_ = 0;
  Work work_;
};
constexpr auto kNothing = [] {};

// Kernel::block, which calls meanwhile() after each of its steps; one that cannot overlap has a single step.
template <class Kernel, class Meanwhile>
CROSSRANK_INLINE void block_and(const typename Kernel::Operand* a, int64_t lda, const typename Kernel::Operand* panel,
                                int64_t depth, const float* start, int64_t start_ld, float* c, int64_t ldc,
                                Meanwhile&& meanwhile) {
  if constexpr (Kernel::kOverlaps) {
    Kernel::block(a, lda, panel, depth, start, start_ld, c, ldc, meanwhile);
  } else {
    Kernel::block(a, lda, panel, depth, start, start_ld, c, ldc);
    meanwhile();
  }
}

// How many steps a product of [rows][depth] and [depth][columns] has.
template <class Kernel>
int64_t steps_of(int64_t rows, int64_t columns, int64_t depth) {
  const int64_t rows_of_blocks = round_up(rows, Kernel::kRows) / Kernel::kRows;
  const int64_t blocks = rows_of_blocks * (round_up(columns, Kernel::kCols) / Kernel::kCols);
  return Kernel::kOverlaps ? blocks * (depth / Kernel::kDepth) : blocks;
}
template <class Kernel>
int64_t steps_of(int64_t rows, const Panels<Kernel>& b) {
  return steps_of<Kernel>(rows, b.columns, b.depth);
}

// Multiplies rows of A with B, and calls finish(row, column, rows, c) for the result, two rows (the last may be one) of
// a block at a time: c is fp32 [rows][kCols], and may be changed. A must be readable up to a whole number of blocks.
//
// A block is finished while the next one is multiplied.
template <class Kernel, class Meanwhile, class Finish>
CROSSRANK_INLINE void multiply(const typename Kernel::Operand* a, int64_t lda, int64_t rows, const Panels<Kernel>& b,
                               const float* bias, Meanwhile&& meanwhile, Finish finish) {
  alignas(64) float c[2][Kernel::kRows * Kernel::kCols];
  int64_t last_row = 0, last_column = 0, last_rows = 0;
  int next = 0;
  const auto finish_last = [&](int64_t part) CROSSRANK_INLINE_LAMBDA {
    const int64_t left = last_rows - 2 * part;
    finish(last_row + 2 * part, last_column, left < 2 ? left : int64_t{2}, c[1 - next] + 2 * part * Kernel::kCols);
  };
  const int64_t steps = steps_of<Kernel>(Kernel::kRows, Kernel::kCols, b.depth);  // of a block
  for_each_block(rows, b, [&](int64_t row, int64_t column, const typename Kernel::Operand* panel) {
    Parts finishing((last_rows + 1) / 2, steps, finish_last);
    block_and<Kernel>(a + row * lda, lda, panel, b.depth, bias ? bias + column : nullptr, 0, c[next], Kernel::kCols,
                      [&]() CROSSRANK_INLINE_LAMBDA {
                        finishing();
                        meanwhile();
                      });
    last_row = row;
    last_column = column;
    last_rows = rows - row < Kernel::kRows ? rows - row : int64_t{Kernel::kRows};
    next = 1 - next;
  });
  for (int64_t part = 0; part < (last_rows + 1) / 2; ++part) finish_last(part);
}

// c[rows][columns] = start[rows][columns] + A x B; start may be c, or a bias with start_ld 0. Both must reach up to a
// whole number of blocks.
template <class Kernel, class Meanwhile>
CROSSRANK_INLINE void add_product(const typename Kernel::Operand* a, int64_t lda, int64_t rows,
                                  const Panels<Kernel>& b, const float* start, int64_t start_ld, float* c, int64_t ldc,
                                  Meanwhile&& meanwhile) {
  for_each_block(rows, b, [&](int64_t row, int64_t column, const typename Kernel::Operand* panel) {
    block_and<Kernel>(a + row * lda, lda, panel, b.depth, start ? start + row * start_ld + column : nullptr, start_ld,
                      c + row * ldc + column, ldc, meanwhile);
  });
}

// For `finish`: f(vectors, row) on the columns of each of its rows.
template <class Kernel, class Function>
CROSSRANK_INLINE void for_each_row(int64_t row, int64_t rows, const float* c, Function f) {
  for (int64_t i = 0; i < rows; ++i) {
    Vector v[Kernel::kCols / kLanes];
    load(c + i * Kernel::kCols, v);
    f(v, row + i);
  }
}

// target[rows][columns] = A x B + bias, in the target's type. The target must be writable up to a whole number of
// blocks.
template <class Kernel, class Target>
CROSSRANK_INLINE void multiply_into(Target* target, int64_t ld, const typename Kernel::Operand* a, int64_t lda,
                                    int64_t rows, const Panels<Kernel>& b, const float* bias) {
  if constexpr (std::is_same<Target, float>::value) {
    add_product(a, lda, rows, b, bias, 0, target, ld, kNothing);
  } else {
    multiply(a, lda, rows, b, bias, kNothing, [&](int64_t row, int64_t column, int64_t wanted, const float* c) {
      for_each_row<Kernel>(row, wanted, c, [&](const auto& v, int64_t i) { store(target + i * ld + column, v); });
    });
  }
}

}  // namespace crossrank

// Matrices as the right operands of products.
#pragma once

#include <algorithm>

#include "vectors.h"

namespace crossrank {

// A view of a matrix B[depth][columns] that lies in the kernel's panels.
template <class Kernel>
struct Panels {
  const typename Kernel::Operand* first;
  int64_t stride;  // numbers from a column's panel to the next column's; at least depth
  int64_t depth, columns;

  // The panel that begins with column n, a multiple of kCols.
  const typename Kernel::Operand* panel(int64_t n) const { return first + n * stride; }
};

// A matrix B[depth][columns] in the kernel's panels; both are padded already.
template <class Kernel>
class Packed {
 public:
  using Operand = typename Kernel::Operand;

  Packed() = default;
  Packed(int64_t depth, int64_t columns) : depth_(depth), columns_(columns), panels_(depth * columns) {}

  void set(int64_t k, int64_t n, float value) {
    const int64_t panel = n / Kernel::kCols;
    store_one(&panels_[panel * depth_ * Kernel::kCols + Kernel::panel_offset(k, n % Kernel::kCols)], value);
  }

  // Everything, some columns, or some rows of it.
  Panels<Kernel> all() const { return {panels_.get(), depth_, depth_, columns_}; }
  Panels<Kernel> columns(int64_t first, int64_t count) const {
    return {panels_.get() + first * depth_, depth_, depth_, count};
  }
  Panels<Kernel> rows(int64_t first, int64_t count) const {
    return {panels_.get() + first * Kernel::kCols, depth_, std::min(count, depth_ - first), columns_};
  }

 private:
  int64_t depth_ = 0, columns_ = 0;
  Buffer<Operand> panels_;
};

template <class Kernel>
struct Linear {
  Packed<Kernel> weight;
  Buffer<float> bias;  // [columns]
};

}  // namespace crossrank

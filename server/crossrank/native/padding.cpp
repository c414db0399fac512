// At the speed of memory.
#include "padding.h"

#include <algorithm>

#include "interface.h"

void crossrank_pad(const int32_t* ids, const int32_t* types, const int64_t* offsets, int64_t pairs, int64_t rows,
                   int64_t length, int32_t pad_id, int32_t* padded_ids, int32_t* padded_types, int32_t* mask) {
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t start = row < pairs ? offsets[row] : 0, tokens = row < pairs ? offsets[row + 1] - start : 0;
    const int64_t attended = row < pairs ? tokens : 1;
    std::fill(std::copy_n(ids + start, tokens, padded_ids), padded_ids + length, pad_id);
    std::fill(std::copy_n(types + start, tokens, padded_types), padded_types + length, 0);
    std::fill(std::fill_n(mask, attended, 1), mask + length, 0);
    padded_ids += length;
    padded_types += length;
    mask += length;
  }
}

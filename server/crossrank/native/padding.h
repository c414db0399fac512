// Packed pairs as the tensors that ONNX graphs take, as Python sees it (padding.py).
#pragma once

#include "api.h"

// Pair i is ids[offsets[i], offsets[i + 1]), types alike. Writes rows x length numbers to each of the three results: a
// pair a row, with `pad_id`, type 0 and mask 0 behind it; rows beyond the pairs hold padding and attend to their first
// token. The caller has checked that offsets ascend, that no pair is longer than `length` and that it is not 0.
CROSSRANK_API void crossrank_pad(const int32_t* ids, const int32_t* types, const int64_t* offsets, int64_t pairs,
                                 int64_t rows, int64_t length, int32_t pad_id, int32_t* padded_ids,
                                 int32_t* padded_types, int32_t* mask);

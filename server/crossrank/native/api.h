// What Python sees (library.py): plain C, one library for each kernel with the same functions. interface.py holds a hash
// of the declarations here.
//
// Functions that can fail return null or false and write a message of at most kErrorBytes into `error`.
// No function touches Python, so that callers hold no GIL.
#pragma once

#include <cstdint>

#define CROSSRANK_API extern "C" __attribute__((visibility("default")))

constexpr int64_t kErrorBytes = 256;

struct crossrank_shape {
  int32_t layers, hidden, heads, ffn, vocab_size, positions, segments;
  float epsilon;  // of every LayerNorm
};

// fp32 numbers by role: layer.0.query.weight, ... (weights.py lists them).
struct crossrank_weight {
  const char* role;
  const float* data;
  int64_t count;
};

struct crossrank_model;
struct crossrank_context;

// Copies and packs the weights; the caller may drop them afterwards.
CROSSRANK_API crossrank_model* crossrank_model_create(const crossrank_shape* shape, const crossrank_weight* weights,
                                                      int64_t count, char* error);
CROSSRANK_API void crossrank_model_destroy(crossrank_model* model);

// The buffers of one thread. They refer to the model, which must outlive them.
CROSSRANK_API crossrank_context* crossrank_context_create(const crossrank_model* model, char* error);
CROSSRANK_API void crossrank_context_destroy(crossrank_context* context);

// Writes a logit for each of `pairs` documents: ids and types [tokens], offsets [pairs + 1], logits [pairs].
// Everything is checked before anything is computed.
CROSSRANK_API bool crossrank_score(crossrank_context* context, const int32_t* ids, const int32_t* types, int64_t tokens,
                                   const int64_t* offsets, int64_t pairs, float* logits, char* error);

// y[i] = function(x[i]) as the encoder computes it, for tests: "gelu", "exp2" or "tanh".
CROSSRANK_API bool crossrank_elementwise(const char* function, const float* x, int64_t count, float* y, char* error);

// Whether this CPU and its kernel run "avx2", "avx512", "avx512_bf16" or "amx". For AMX that asks Linux for permission
// to use tiles. In the portable library, which runs everywhere.
CROSSRANK_API bool crossrank_cpu_runs(const char* kernel);

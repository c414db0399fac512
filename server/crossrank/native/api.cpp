// The C interface: checks what comes from outside, and turns exceptions into messages.
#include "api.h"

#include "dot_kernel.h"
#include "encoder.h"
#include "fma_kernel.h"
#include "guard.h"
#include "interface.h"
#include "tile_kernel.h"

namespace crossrank {

// The build decides what this library computes with (setup.py).
#if defined(CROSSRANK_AMX)
using Tiles = HardwareTiles;
using Kernel = TileKernel<HardwareTiles>;
#elif defined(CROSSRANK_AMX_EMULATED)
using Tiles = EmulatedTiles;
using Kernel = TileKernel<EmulatedTiles>;
#else
struct Tiles {
  static void begin() {}
  static void end() {}
};
#if defined(CROSSRANK_DOT)
using Kernel = DotKernel;
#else
using Kernel = FmaKernel;
#endif
#endif

namespace {

void check_offsets(const Shape& shape, const int64_t* offsets, int64_t pairs, int64_t tokens) {
  if (pairs < 0 || tokens < 0) Shape::fail("a negative number of pairs or tokens");
  if (offsets[0] != 0 || offsets[pairs] != tokens)
    Shape::fail("offsets reach from " + std::to_string(offsets[0]) + " to " + std::to_string(offsets[pairs]) +
                ", not from 0 to the " + std::to_string(tokens) + " tokens");
  for (int64_t i = 0; i < pairs; ++i) {
    // Compared before they are subtracted: any number may stand here.
    const bool within = offsets[i] < offsets[i + 1] && offsets[i + 1] <= tokens;
    if (!within || offsets[i + 1] - offsets[i] > shape.positions)
      Shape::fail("pair " + std::to_string(i) + " reaches from token " + std::to_string(offsets[i]) + " to " +
                  std::to_string(offsets[i + 1]) + ": a pair has 1 to " + std::to_string(shape.positions) +
                  " tokens, in order");
  }
}

void check_tokens(const char* name, const int32_t* values, int64_t count, int32_t limit) {
  for (int64_t i = 0; i < count; ++i)
    if (values[i] < 0 || values[i] >= limit)
      Shape::fail(std::string(name) + "[" + std::to_string(i) + "] is " + std::to_string(values[i]) + ", not 0 to " +
                  std::to_string(limit - 1));
}

}  // namespace
}  // namespace crossrank

using namespace crossrank;

struct crossrank_model : Model<Kernel> {
  using Model<Kernel>::Model;
};

struct crossrank_context {
  explicit crossrank_context(const crossrank_model& model) : shape(model.shape), encoder(model) {}
  const Shape& shape;
  Encoder<Kernel> encoder;
};

crossrank_model* crossrank_model_create(const crossrank_shape* shape, const crossrank_weight* weights, int64_t count,
                                        char* error) {
  return guarded(error, [&] { return new crossrank_model(*shape, Weights(weights, count)); });
}

void crossrank_model_destroy(crossrank_model* model) { delete model; }

crossrank_context* crossrank_context_create(const crossrank_model* model, char* error) {
  return guarded(error, [&] { return new crossrank_context(*model); });
}

void crossrank_context_destroy(crossrank_context* context) { delete context; }

bool crossrank_score(crossrank_context* context, const int32_t* ids, const int32_t* types, int64_t tokens,
                     const int64_t* offsets, int64_t pairs, float* logits, char* error) {
  return guarded(error, [&] {
    check_offsets(context->shape, offsets, pairs, tokens);
    check_tokens("input_ids", ids, tokens, context->shape.vocab_size);
    check_tokens("token_type_ids", types, tokens, context->shape.segments);
    Tiles::begin();
    context->encoder.score(ids, types, offsets, pairs, logits);
    Tiles::end();
    return true;
  });
}

bool crossrank_elementwise(const char* function, const float* x, int64_t count, float* y, char* error) {
  return guarded(error, [&] {
    const std::string name = function;
    if (name != "gelu" && name != "exp2" && name != "tanh") Shape::fail("no function is called " + name);
    for (int64_t i = 0; i < count; ++i) {
      Vector v[] = {splat(x[i])};
      if (name == "gelu")
        gelu_in_place(v);
      else
        v[0] = name == "exp2" ? exp2_of(v[0]) : tanh_of(v[0]);
      float lanes[kLanes];
      store(lanes, v);
      y[i] = lanes[0];
    }
    return true;
  });
}

// The weights of a BERT cross-encoder, checked and packed for a kernel. Immutable once made: any thread may read it.
#pragma once

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

#include "api.h"
#include "elementwise.h"
#include "token_table.h"

namespace crossrank {

// The shape as the bundle states it, and the padded widths that memory has. What a product sums over is padded to a
// multiple of the kernel's `depth`, what it gives to a multiple of the `columns` of its blocks.
struct Shape : crossrank_shape {
  Shape(const crossrank_shape& shape, int64_t depth, int64_t columns) : crossrank_shape(shape) {
    limit("layers", layers, 1, 48);
    limit("hidden", hidden, 1, 2048);
    limit("heads", heads, 1, hidden);
    limit("ffn", ffn, 1, 16384);
    limit("vocab_size", vocab_size, 1, 1 << 24);
    limit("positions", positions, 1, 1 << 16);
    limit("segments", segments, 1, 16);
    if (hidden % heads) fail("hidden " + std::to_string(hidden) + " is no multiple of heads " + std::to_string(heads));
    if (!(epsilon > 0 && epsilon < 1)) fail("epsilon is not between 0 and 1");
    head = hidden / heads;
    width = round_up(hidden, kAlign);
    head_width = round_up(head, depth);
    inner = round_up((heads - 1) * head_width + round_up(head, kAlign), kAlign);
    ffn_width = round_up(ffn, columns);
  }

  int64_t head = 0;        // columns of a head
  int64_t width = 0;       // hidden, padded
  int64_t head_width = 0;  // from one head to the next
  int64_t inner = 0;       // all heads; blocks may reach over the end of a head, into the next or the padding
  int64_t ffn_width = 0;

  [[noreturn]] static void fail(const std::string& why) { throw std::invalid_argument(why); }

 private:
  static void limit(const char* name, int64_t value, int64_t least, int64_t most) {
    if (value < least || value > most)
      fail(std::string(name) + " is " + std::to_string(value) + ", not " + std::to_string(least) + " to " +
           std::to_string(most));
  }
};

// Finds weights by role; those of a linear layer are [in][out].
class Weights {
 public:
  Weights(const crossrank_weight* weights, int64_t count) : weights_(weights), count_(count) {}

  const float* find(const std::string& role, int64_t count) const {
    for (int64_t i = 0; i < count_; ++i)
      if (role == weights_[i].role) return checked(weights_[i], count);
    Shape::fail("no weight has the role " + role);
  }

 private:
  static const float* checked(const crossrank_weight& weight, int64_t count) {
    const std::string role = weight.role;
    if (weight.count != count)
      Shape::fail(role + " has " + std::to_string(weight.count) + " numbers, the shape asks for " +
                  std::to_string(count));
    for (int64_t i = 0; i < count; ++i)
      if (!std::isfinite(weight.data[i]) || std::fabs(weight.data[i]) > 1e6f)
        Shape::fail(role + "[" + std::to_string(i) + "] is " + std::to_string(weight.data[i]) +
                    ", not a number of a trained model");
    return weight.data;
  }

  const crossrank_weight* weights_;
  int64_t count_;
};

template <class Kernel>
struct Layer {
  // Columns: all queries, all keys, all values, head by head; the last layer has queries only.
  Linear<Kernel> qkv;
  std::vector<Packed<Kernel>> key_transposed;  // last layer only, one a head: [head][width]
  std::vector<Linear<Kernel>> value;           // last layer only, one a head: [hidden][head]
  Linear<Kernel> output, up, down;
  LayerNorm attention_norm, output_norm;
};

// The last layer, pooler and classifier concern one token a document. They cost next to nothing, their errors go
// straight into the logit, and so they are computed in fp32 whatever the kernel.
template <class Kernel>
class Model {
  using Operand = typename Kernel::Operand;

 public:
  Model(const crossrank_shape& given, const Weights& weights) : shape(given, Kernel::kDepth, Kernel::kCols) {
    const Shape& s = shape;
    read_embeddings(weights);
    layers.resize(s.layers - 1);
    const bool with_table = s.layers > 1 && TokenTable<Operand>::pays(s.vocab_size, 3 * s.inner);
    if (with_table) read_table(weights);
    for (int i = 0; i + 1 < s.layers; ++i) read_layer(weights, i, i == 0 && with_table, layers[i]);
    read_layer(weights, s.layers - 1, false, last);
    pooler = linear<FmaKernel>(weights, "pooler.", s.hidden, s.hidden, s.width);
    classifier = Buffer<float>(s.width);
    std::memcpy(classifier.get(), weights.find("classifier.weight", s.hidden), s.hidden * sizeof(float));
    classifier_bias = *weights.find("classifier.bias", 1);
  }

  Shape shape;
  Buffer<float> words;      // [vocab_size][width]
  Buffer<float> positions;  // [segments][positions][width]: both embeddings added up
  LayerNorm embedding_norm;
  TokenTable<Operand> table;  // empty if it would be too large; else the first layer has no qkv
  std::vector<Layer<Kernel>> layers;  // all but the last
  Layer<FmaKernel> last;
  Linear<FmaKernel> pooler;
  Buffer<float> classifier;  // [width]
  float classifier_bias = 0;

 private:
  void read_embeddings(const Weights& weights) {
    const Shape& s = shape;
    const float* word = weights.find("embeddings.word", int64_t{s.vocab_size} * s.hidden);
    words = Buffer<float>(round_up(s.vocab_size, FmaKernel::kRows) * s.width);
    for (int64_t id = 0; id < s.vocab_size; ++id)
      std::memcpy(&words[id * s.width], word + id * s.hidden, s.hidden * sizeof(float));
    const float* position = weights.find("embeddings.position", int64_t{s.positions} * s.hidden);
    const float* segment = weights.find("embeddings.segment", int64_t{s.segments} * s.hidden);
    positions = Buffer<float>(round_up(int64_t{s.segments} * s.positions, FmaKernel::kRows) * s.width);
    for (int64_t t = 0; t < s.segments; ++t)
      for (int64_t p = 0; p < s.positions; ++p)
        for (int64_t i = 0; i < s.hidden; ++i)
          positions[(t * s.positions + p) * s.width + i] = position[p * s.hidden + i] + segment[t * s.hidden + i];
    embedding_norm = norm(weights, "embeddings.norm.");
  }

  void read_table(const Weights& weights) {
    const Shape& s = shape;
    const int64_t columns = 3 * s.inner;
    std::vector<float> weight(s.hidden * columns);
    Buffer<float> bias(columns);
    const auto set = [&](int64_t k, int64_t n, float value) { weight[k * columns + n] = value; };
    read_qkv(weights, "layer.0.", set, bias);
    table = TokenTable<Operand>(
        {words.get(), s.vocab_size, positions.get(), int64_t{s.segments} * s.positions}, embedding_norm,
        std::move(weight), std::move(bias), columns);
  }

  // qkv_elsewhere: without queries, keys and values.
  template <class K>
  void read_layer(const Weights& weights, int number, bool qkv_elsewhere, Layer<K>& layer) {
    const Shape& s = shape;
    const std::string at = "layer." + std::to_string(number) + ".";
    const bool is_last = number + 1 == s.layers;
    if (is_last) {
      layer.qkv = {Packed<K>(s.hidden, s.inner), Buffer<float>(s.inner)};
      read_columns(weights, at + "query.", 0, s.hidden, query_scale(), 0, setter(layer.qkv.weight), layer.qkv.bias);
      read_transposed_keys(weights, at + "key.", layer);
      const int64_t columns = round_up(s.head, K::kCols);
      for (int64_t h = 0; h < s.heads; ++h) {
        layer.value.push_back({Packed<K>(s.hidden, columns), Buffer<float>(columns)});
        Linear<K>& value = layer.value.back();
        read_columns(weights, at + "value.", h * s.head, s.head, 1, 0, setter(value.weight), value.bias);
      }
    } else if (!qkv_elsewhere) {
      layer.qkv = {Packed<K>(round_up(s.hidden, K::kDepth), 3 * s.inner), Buffer<float>(3 * s.inner)};
      read_qkv(weights, at, setter(layer.qkv.weight), layer.qkv.bias);
    }
    layer.output = output<K>(weights, at + "output.");
    layer.attention_norm = norm(weights, at + "attention_norm.");
    layer.up = linear<K>(weights, at + "up.", s.hidden, s.ffn, s.ffn_width);
    layer.down = linear<K>(weights, at + "down.", s.ffn, s.hidden, s.width);
    layer.output_norm = norm(weights, at + "output_norm.");
  }

  // softmax(x) = 2^(x log2 e) / sum: the factor and 1 / sqrt(head) are folded into the queries.
  float query_scale() const {
    return static_cast<float>(1.4426950408889634 / std::sqrt(static_cast<double>(shape.head)));
  }

  template <class K>
  static auto setter(Packed<K>& to) {
    return [&to](int64_t k, int64_t n, float value) { to.set(k, n, value); };
  }

  template <class Set>
  void read_qkv(const Weights& weights, const std::string& at, Set set, Buffer<float>& bias) const {
    read_columns(weights, at + "query.", 0, shape.hidden, query_scale(), 0, set, bias);
    read_columns(weights, at + "key.", 0, shape.hidden, 1, shape.inner, set, bias);
    read_columns(weights, at + "value.", 0, shape.hidden, 1, 2 * shape.inner, set, bias);
  }

  // Columns `first` to `first + count` of one projection, whole heads, to column `target` and on.
  template <class Set>
  void read_columns(const Weights& weights, const std::string& at, int64_t first, int64_t count, float scale,
                    int64_t target, Set set, Buffer<float>& to_bias) const {
    const Shape& s = shape;
    const float* weight = weights.find(at + "weight", int64_t{s.hidden} * s.hidden);
    const float* bias = weights.find(at + "bias", s.hidden);
    for (int64_t n = 0; n < count; ++n) {
      const int64_t column = target + n / s.head * s.head_width + n % s.head;
      to_bias[column] = bias[first + n] * scale;
      for (int64_t k = 0; k < s.hidden; ++k) set(k, column, weight[k * s.hidden + first + n] * scale);
    }
  }

  // The key bias adds the same to every score of a query, which softmax cancels: only [CLS] asks in the last layer.
  template <class K>
  void read_transposed_keys(const Weights& weights, const std::string& at, Layer<K>& layer) {
    const Shape& s = shape;
    const float* weight = weights.find(at + "weight", int64_t{s.hidden} * s.hidden);
    weights.find(at + "bias", s.hidden);
    for (int64_t h = 0; h < s.heads; ++h) {
      Packed<K> keys(s.head, s.width);
      for (int64_t k = 0; k < s.head; ++k)
        for (int64_t n = 0; n < s.hidden; ++n) keys.set(k, n, weight[n * s.hidden + h * s.head + k]);
      layer.key_transposed.push_back(std::move(keys));
    }
  }

  // Its rows are the heads' columns, padded as they are.
  template <class K>
  Linear<K> output(const Weights& weights, const std::string& at) const {
    const Shape& s = shape;
    const float* weight = weights.find(at + "weight", int64_t{s.hidden} * s.hidden);
    Linear<K> result{Packed<K>(s.heads * s.head_width, s.width), bias(weights, at, s.hidden, s.width)};
    for (int64_t k = 0; k < s.hidden; ++k)
      for (int64_t n = 0; n < s.hidden; ++n)
        result.weight.set(k / s.head * s.head_width + k % s.head, n, weight[k * s.hidden + n]);
    return result;
  }

  template <class K>
  Linear<K> linear(const Weights& weights, const std::string& at, int64_t in, int64_t out, int64_t out_width) const {
    const float* weight = weights.find(at + "weight", in * out);
    Linear<K> result{Packed<K>(round_up(in, K::kDepth), out_width), bias(weights, at, out, out_width)};
    for (int64_t k = 0; k < in; ++k)
      for (int64_t n = 0; n < out; ++n) result.weight.set(k, n, weight[k * out + n]);
    return result;
  }

  static Buffer<float> bias(const Weights& weights, const std::string& at, int64_t count, int64_t padded) {
    Buffer<float> result(padded);
    std::memcpy(result.get(), weights.find(at + "bias", count), count * sizeof(float));
    return result;
  }

  LayerNorm norm(const Weights& weights, const std::string& at) const {
    LayerNorm result;
    result.weight = Buffer<float>(shape.width);
    std::memcpy(result.weight.get(), weights.find(at + "weight", shape.hidden), shape.hidden * sizeof(float));
    result.bias = bias(weights, at, shape.hidden, shape.width);
    result.hidden = shape.hidden;
    result.padded = shape.width;
    result.epsilon = shape.epsilon;
    return result;
  }
};

}  // namespace crossrank

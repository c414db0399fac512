// Functions of single elements and of rows: exp2, GELU, tanh, softmax, LayerNorm. All in fp32.
#pragma once

#include <cmath>

#include "vectors.h"

namespace crossrank {

// These functions are chains of a dozen dependent operations, of four or five cycles each. They take several vectors in
// lockstep: left to itself, a CPU's scheduler holds no more than two or three such chains at a time.

// sum = p[0] + p[1] x + ... by Horner's rule.
template <int N, int M>
CROSSRANK_INLINE void polynomial(const float (&p)[N], const Vector (&x)[M], Vector (&sum)[M]) {
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) sum[m] = splat(p[N - 1]);
#pragma GCC unroll 16
  for (int i = N - 2; i >= 0; --i)
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) sum[m] = sum[m] * x[m] + p[i];
}

// x = 2^x for -126 <= x <= 127 (smaller is taken as -126), relative error below 3e-7.
//
// x = n + f with n whole and |f| <= 1/2. Adding 1.5 * 2^23 rounds x to n in the low bits of the sum; those bits, moved
// into the exponent of the minimax polynomial of 2^f, multiply it by 2^n.
// Source: N. N. Schraudolph, A fast, compact approximation of the exponential function, 1999 (the exponent trick).
template <int M>
CROSSRANK_INLINE void exp2_in_place(Vector (&x)[M]) {
  constexpr float kCoefficients[] = {1.00000007f, 0.69314697f, 0.2402212f, 0.05550713f, 0.00967554f, 0.00132765f};
  constexpr float kRound = 12582912.0f;
  Vector shifted[M], f[M], power[M];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
    x[m] = maximum(x[m], splat(-126.0f));
    shifted[m] = x[m] + kRound;
    f[m] = x[m] - (shifted[m] - kRound);
  }
  polynomial(kCoefficients, f, power);
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
    x[m] = bits_as<Vector>(bits_as<UintVector>(power[m]) + (bits_as<UintVector>(shifted[m]) << 23));
}

// x = GELU(x) = x (1 + erf(x / sqrt 2)) / 2, absolute error below 1e-5 for every finite x.
// Source: https://arxiv.org/abs/1606.08415
//
// erf(x / sqrt 2) / 2 = x p(x^2), fitted by minimax on |x| <= 4.75 with the end held at exactly 1/2; beyond, |GELU(x) -
// max(x, 0)| < 5e-6. p is written in u = 2 x^2 / 4.75^2 - 1, where its terms do not cancel each other.
template <int M>
CROSSRANK_INLINE void gelu_in_place(Vector (&x)[M]) {
  constexpr float kEnd = 4.75f;
  constexpr float kCoefficients[] = {0.148748353f,  -0.0736692548f, 0.0532334261f,   -0.0405312628f,
                                     0.0303966794f, -0.0218508150f, 0.0135154333f,   -0.00678395620f,
                                     0.00473989733f, -0.00400644261f, 0.00147109688f};
  Vector inside[M], u[M], p[M];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
    inside[m] = maximum(minimum(x[m], splat(kEnd)), splat(-kEnd));
    u[m] = inside[m] * inside[m] * (2.0f / (kEnd * kEnd)) - 1.0f;
  }
  polynomial(kCoefficients, u, p);
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) x[m] *= inside[m] * p[m] + 0.5f;
}

CROSSRANK_INLINE Vector exp2_of(Vector x) {
  Vector one[] = {x};
  exp2_in_place(one);
  return one[0];
}

// tanh(x) = 1 - 2 / (1 + e^(2x)); beyond 10 it is 1 in fp32.
CROSSRANK_INLINE Vector tanh_of(Vector x) {
  constexpr float kTwoLog2E = 2.88539008f;
  x = maximum(minimum(x, splat(10.0f)), splat(-10.0f));
  return 1.0f - 2.0f / (1.0f + exp2_of(x * kTwoLog2E));
}

// Turns scores[0 .. length) into p[i] = 2^(s[i] - max s), next to nothing up to a multiple of kAlign; returns
// 1 / sum p. Whoever multiplies by p scales the result, which is shorter. The factor log2 e of softmax's e^x is in the
// queries already. Scores are overwritten from `length` on, up to a multiple of kAlign.
template <class Operand>
CROSSRANK_INLINE float softmax_row(float* scores, Operand* p, int64_t length) {
  const int64_t padded = round_up(length, kAlign);
  Vector part[kAlign / kLanes], most[kAlign / kLanes];
  load(scores + padded - kAlign, part);
  for (int m = 0; m < kAlign / kLanes; ++m)
    part[m] = lane_numbers() < static_cast<int32_t>(length - padded + kAlign - m * kLanes) ? part[m] : splat(-1e30f);
  store(scores + padded - kAlign, part);
  load(scores, most);
  for (int64_t i = kAlign; i < padded; i += kAlign) {
    load(scores + i, part);
    for (int m = 0; m < kAlign / kLanes; ++m) most[m] = maximum(most[m], part[m]);
  }
  const float top = maximum_of(most);
  Vector sum[kAlign / kLanes] = {};
  for (int64_t i = 0; i < padded; i += kAlign) {
    load(scores + i, part);
    for (int m = 0; m < kAlign / kLanes; ++m) part[m] -= top;
    exp2_in_place(part);
    for (int m = 0; m < kAlign / kLanes; ++m) sum[m] += part[m];
    store(p + i, part);
  }
  return 1.0f / sum_of(sum);
}

// y = (x - mean) / sqrt(variance + epsilon) * weight + bias over the first `hidden` of `padded` columns; the padding
// holds zeros, in x as in weight and bias, and takes no part. Source: https://arxiv.org/abs/1607.06450
struct LayerNorm {
  Buffer<float> weight, bias;  // [padded]
  int64_t hidden = 0, padded = 0;
  float epsilon = 0;

  // Calls write(column, vector) for every vector of y, and returns 1 / sqrt(variance + epsilon).
  template <class Write>
  CROSSRANK_INLINE float row(const float* x, Write write) const {
    const float share = 1.0f / static_cast<float>(hidden);
    Vector sum[kAlign / kLanes] = {}, squares[kAlign / kLanes] = {};
    for (int64_t i = 0; i < padded; i += kAlign)
#pragma GCC unroll 8
      for (int m = 0; m < kAlign / kLanes; ++m) sum[m] += load(x + i + m * kLanes);
    const float mean = sum_of(sum) * share;
    for (int64_t i = 0; i < padded; i += kAlign)
#pragma GCC unroll 8
      for (int m = 0; m < kAlign / kLanes; ++m) {
        const Vector off = load(x + i + m * kLanes) - mean;
        squares[m] += off * off;
      }
    const float padding = static_cast<float>(padded - hidden) * mean * mean;
    const float variance = (sum_of(squares) - padding) * share;
    const float scale = 1.0f / std::sqrt(variance + epsilon);
    for (int64_t i = 0; i < padded; i += kLanes)
      write(i, (load(x + i) - mean) * scale * load(weight.get() + i) + load(bias.get() + i));
    return scale;
  }
};

}  // namespace crossrank

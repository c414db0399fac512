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
#if defined(__AVX512F__)
// = x / 2 + |x| p(|x|) with p(a) = erf(a / sqrt 2) / 2 as one of 32 parabolas, each a minimax fit of a p(a) around its
// multiple of 4.8 / 31; the last one is 1/2. An instruction looks up one of 32 numbers by the low bits of a lane, into
// which adding 1.5 * 2^23 rounds a's place, as in exp2_in_place.
template <int M>
CROSSRANK_INLINE void gelu_in_place(Vector (&x)[M]) {
  constexpr float kEnd = 4.8f, kRound = 12582912.0f;
  alignas(64) static constexpr float kParabolas[3][32] = {
      {-5.64884704e-06f, -0.000228006014f, -0.00177277531f, -0.00538669527f, -0.0108296666f, -0.0167546086f,
       -0.0208998919f, -0.0205406975f, -0.0130808083f, 0.00338415639f, 0.0296595283f, 0.065288648f, 0.108651027f,
       0.157271415f, 0.208249152f, 0.258703649f, 0.306147158f, 0.3487297f, 0.385337651f, 0.415563673f, 0.4395836f,
       0.45798704f, 0.47160086f, 0.48133558f, 0.488071084f, 0.492584229f, 0.495514989f, 0.497360617f, 0.498488337f,
       0.49915725f, 0.499542624f, 0.5f},
      {0.399385124f, 0.403773427f, 0.416760951f, 0.435358912f, 0.455486804f, 0.472597629f, 0.482466549f, 0.481892049f,
       0.469170749f, 0.444252789f, 0.408600301f, 0.364813656f, 0.316125572f, 0.265879244f, 0.217084035f, 0.172109932f,
       0.132541165f, 0.0991742685f, 0.0721250698f, 0.0509967059f, 0.0350662917f, 0.0234554596f, 0.0152654909f,
       0.00966916326f, 0.0059616752f, 0.0035787581f, 0.00209198054f, 0.00119100604f, 0.00066048943f, 0.000356839795f,
       0.000187840924f, 0.0f},
      {-0.00987397321f, -0.0318075642f, -0.0593358316f, -0.0833405405f, -0.101979308f, -0.114344954f, -0.120221637f,
       -0.12000525f, -0.11458037f, -0.105150141f, -0.0930533856f, -0.0795978904f, -0.065928787f, -0.0529454015f,
       -0.041267544f, -0.0312443152f, -0.0229933336f, -0.0164564177f, -0.0114594987f, -0.00776702864f, -0.0051255594f,
       -0.00329413847f, -0.00206232793f, -0.00125798862f, -0.000747781713f, -0.000433230802f, -0.000244663708f,
       -0.000134703107f, -7.23086341e-05f, -3.78485929e-05f, -1.93193846e-05f, 0.0f},
  };
  const auto coefficient = [](int power, UintVector place) {
    return _mm512_permutex2var_ps(load(kParabolas[power]), bits_as<__m512i>(place), load(kParabolas[power] + kLanes));
  };
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
    const Vector size = _mm512_abs_ps(x[m]), a = minimum(size, splat(kEnd));
    const UintVector place = bits_as<UintVector>(a * (31 / kEnd) + kRound);
    const Vector p = (coefficient(2, place) * a + coefficient(1, place)) * a + coefficient(0, place);
    x[m] = size * p + x[m] * 0.5f;
  }
}
#else
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
#endif

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
  Vector part[kAlignVectors], most[kAlignVectors];
  load(scores + padded - kAlign, part);
  for (int m = 0; m < kAlignVectors; ++m)
    part[m] = lane_numbers() < static_cast<int32_t>(length - padded + kAlign - m * kLanes) ? part[m] : splat(-1e30f);
  store(scores + padded - kAlign, part);
  load(scores, most);
  for (int64_t i = kAlign; i < padded; i += kAlign) {
    load(scores + i, part);
    for (int m = 0; m < kAlignVectors; ++m) most[m] = maximum(most[m], part[m]);
  }
  const float top = maximum_of(most);
  Vector sum[kAlignVectors] = {};
  for (int64_t i = 0; i < padded; i += kAlign) {
    load(scores + i, part);
    for (int m = 0; m < kAlignVectors; ++m) part[m] -= top;
    exp2_in_place(part);
    for (int m = 0; m < kAlignVectors; ++m) sum[m] += part[m];
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

  // Calls write(column, vectors) for every kAlign columns of y, and returns 1 / sqrt(variance + epsilon). `before`,
  // [padded], is added to x first, unless it is null.
  template <class Write>
  CROSSRANK_INLINE float row(const float* x, const float* before, Write write) const {
#if defined(__AVX512F__)
    if (padded == 128) return short_row<128 / kLanes>(x, before, write);
#endif
    const auto at = [&](int64_t i) { return before ? load(x + i) + load(before + i) : load(x + i); };
    Vector sum[kAlignVectors] = {}, squares[kAlignVectors] = {};
    for (int64_t i = 0; i < padded; i += kAlign)
#pragma GCC unroll 8
      for (int m = 0; m < kAlignVectors; ++m) sum[m] += at(i + m * kLanes);
    const float mean = sum_of(sum) / static_cast<float>(hidden);
    for (int64_t i = 0; i < padded; i += kAlign)
#pragma GCC unroll 8
      for (int m = 0; m < kAlignVectors; ++m) {
        const Vector off = at(i + m * kLanes) - mean;
        squares[m] += off * off;
      }
    const float scale = scale_of(sum_of(squares), mean);
    for (int64_t i = 0; i < padded; i += kAlign) {
      Vector y[kAlignVectors];
#pragma GCC unroll 8
      for (int m = 0; m < kAlignVectors; ++m) y[m] = scaled(i + m * kLanes, at(i + m * kLanes) - mean, scale);
      write(i, y);
    }
    return scale;
  }

 private:
  CROSSRANK_INLINE Vector scaled(int64_t i, Vector off, float scale) const {
    return off * scale * load(weight.get() + i) + load(bias.get() + i);
  }
  float scale_of(float squares, float mean) const {
    const float padding = static_cast<float>(padded - hidden) * mean * mean;
    return 1.0f / std::sqrt((squares - padding) / static_cast<float>(hidden) + epsilon);
  }

  // A row that fits the registers.
  template <int M, class Write>
  CROSSRANK_INLINE float short_row(const float* x, const float* before, Write write) const {
    Vector v[M], squares[4] = {};
    load(x, v);
    if (before)
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) v[m] += load(before + m * kLanes);
    Vector sum[4] = {v[0] + v[4], v[1] + v[5], v[2] + v[6], v[3] + v[7]};
    static_assert(M == 8, "sums of two");
    const float mean = sum_of(sum) / static_cast<float>(hidden);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      v[m] -= mean;
      squares[m % 4] += v[m] * v[m];
    }
    const float scale = scale_of(sum_of(squares), mean);
#pragma GCC unroll 4
    for (int m = 0; m < M; m += kAlignVectors) {
      Vector y[kAlignVectors];
#pragma GCC unroll 8
      for (int n = 0; n < kAlignVectors; ++n) y[n] = scaled((m + n) * kLanes, v[m + n], scale);
      write(m * kLanes, y);
    }
    return scale;
  }
};

}  // namespace crossrank

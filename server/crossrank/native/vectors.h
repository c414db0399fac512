// Vectors as wide as the instruction set this file is compiled for, bf16, and aligned memory.
//
// GCC and Clang lower these vector types to whatever registers there are, so that one source serves SSE2, NEON, AVX2
// and AVX-512. Source: https://gcc.gnu.org/onlinedocs/gcc/Vector-Extensions.html
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define CROSSRANK_INLINE inline __attribute__((always_inline))
#define CROSSRANK_INLINE_LAMBDA __attribute__((always_inline))
#define CROSSRANK_NOINLINE __attribute__((noinline))

namespace crossrank {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

// Widths are padded to it with zeros: every kernel's blocks and tiles come out even, and functions of rows can take
// several vectors in lockstep.
constexpr int kAlign = 32;
constexpr int kAlignVectors = kAlign / kLanes;

typedef float Vector __attribute__((vector_size(kLanes * 4)));
typedef int32_t IntVector __attribute__((vector_size(kLanes * 4)));
typedef uint32_t UintVector __attribute__((vector_size(kLanes * 4)));
typedef uint16_t HalfVector __attribute__((vector_size(kLanes * 2)));

// The upper half of a float's bits. Source: https://en.wikipedia.org/wiki/Bfloat16_floating-point_format
struct bf16 {
  uint16_t bits;
};

constexpr int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

template <size_t... lane>
CROSSRANK_INLINE IntVector lane_numbers(std::index_sequence<lane...>) {
  return IntVector{static_cast<int32_t>(lane)...};
}
CROSSRANK_INLINE IntVector lane_numbers() { return lane_numbers(std::make_index_sequence<kLanes>()); }

template <class To, class From>
CROSSRANK_INLINE To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From), "a reinterpretation keeps the size");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

template <class V, class T>
CROSSRANK_INLINE V load_as(const T* from) {
  V v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

CROSSRANK_INLINE Vector splat(float value) { return value - Vector{}; }  // not +: 0 + -0 is 0
#if defined(__AVX512F__)  // GCC 12 makes two instructions of the other form
CROSSRANK_INLINE Vector maximum(Vector a, Vector b) { return _mm512_mask_max_ps(a, 0xffff, a, b); }
CROSSRANK_INLINE Vector minimum(Vector a, Vector b) { return _mm512_mask_min_ps(a, 0xffff, a, b); }
#elif defined(__AVX2__)
CROSSRANK_INLINE Vector maximum(Vector a, Vector b) { return _mm256_max_ps(a, b); }
CROSSRANK_INLINE Vector minimum(Vector a, Vector b) { return _mm256_min_ps(a, b); }
#else
CROSSRANK_INLINE Vector maximum(Vector a, Vector b) { return a > b ? a : b; }
CROSSRANK_INLINE Vector minimum(Vector a, Vector b) { return a < b ? a : b; }
#endif

// Round to nearest, ties to even; the arguments are finite.
CROSSRANK_INLINE UintVector bf16_bits(Vector v) {
  const UintVector u = bits_as<UintVector>(v);
  return (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
}

CROSSRANK_INLINE bf16 bf16_from(float value) {
  const uint32_t u = bits_as<uint32_t>(value);
  return {static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16)};
}

CROSSRANK_INLINE UintVector widened(HalfVector v) {
#if defined(__AVX512F__)  // GCC 12 widens it half by half
  return bits_as<UintVector>(_mm512_maskz_cvtepu16_epi32(0xffff, bits_as<__m256i>(v)));
#else
  return __builtin_convertvector(v, UintVector);
#endif
}

// Operands of a product are read and written as vectors of float, whatever they are stored as.
CROSSRANK_INLINE Vector load(const float* from) { return load_as<Vector>(from); }
CROSSRANK_INLINE Vector load(const bf16* from) { return bits_as<Vector>(widened(load_as<HalfVector>(from)) << 16); }
CROSSRANK_INLINE void store(float* to, Vector v) { std::memcpy(to, &v, sizeof v); }
CROSSRANK_INLINE void store(bf16* to, Vector v) {
#if defined(__AVX512BF16__)
  const __m256bh half = _mm512_cvtneps_pbh(bits_as<__m512>(v));
#else
  const HalfVector half = __builtin_convertvector(bf16_bits(v), HalfVector);
#endif
  std::memcpy(to, &half, sizeof half);
}
CROSSRANK_INLINE void store_one(float* to, float value) { *to = value; }
CROSSRANK_INLINE void store_one(bf16* to, float value) { *to = bf16_from(value); }

// Sums and maxima over a vector halve it until one lane is left: the order never changes.
template <int half, size_t... lane>
CROSSRANK_INLINE Vector halves_swapped(Vector v, std::index_sequence<lane...>) {
  return __builtin_shufflevector(v, v, (static_cast<int>(lane) ^ half)...);
}
template <int half = kLanes / 2, class Step>
CROSSRANK_INLINE float reduce(Vector v, Step step) {
  if constexpr (half == 0)
    return v[0];
  else
    return reduce<half / 2>(step(v, halves_swapped<half>(v, std::make_index_sequence<kLanes>())), step);
}
CROSSRANK_INLINE float sum_of(Vector v) {
  return reduce(v, [](Vector a, Vector b) { return a + b; });
}
CROSSRANK_INLINE float maximum_of(Vector v) {
  return reduce(v, [](Vector a, Vector b) { return maximum(a, b); });
}

// Several vectors side by side; reduced to one first.
template <class T, int M>
CROSSRANK_INLINE void load(const T* from, Vector (&v)[M]) {
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) v[m] = load(from + m * kLanes);
}
template <class T, int M>
CROSSRANK_INLINE void store(T* to, const Vector (&v)[M]) {
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) store(to + m * kLanes, v[m]);
}
#if defined(__AVX512BF16__)
// Whole cache lines.
template <int M>
CROSSRANK_INLINE void store(bf16* to, const Vector (&v)[M]) {
  static_assert(M % 2 == 0, "two vectors make a line");
#pragma GCC unroll 4
  for (int m = 0; m < M; m += 2) {
    const __m512bh line = _mm512_cvtne2ps_pbh(bits_as<__m512>(v[m + 1]), bits_as<__m512>(v[m]));
    std::memcpy(to + m * kLanes, &line, sizeof line);
  }
}
#endif
template <int M>
CROSSRANK_INLINE float sum_of(const Vector (&v)[M]) {
  Vector sum = v[0];
#pragma GCC unroll 8
  for (int m = 1; m < M; ++m) sum += v[m];
  return sum_of(sum);
}
template <int M>
CROSSRANK_INLINE float maximum_of(const Vector (&v)[M]) {
  Vector most = v[0];
#pragma GCC unroll 8
  for (int m = 1; m < M; ++m) most = maximum(most, v[m]);
  return maximum_of(most);
}

// Zeroed memory on cache-line boundaries: tiles and vectors that cross two lines load at half the speed.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t count) {
    const size_t bytes = static_cast<size_t>(round_up(count * static_cast<int64_t>(sizeof(T)), 64));
    if (bytes == 0) return;
    data_ = static_cast<T*>(std::aligned_alloc(64, bytes));
    if (data_ == nullptr) throw std::bad_alloc();
    std::memset(static_cast<void*>(data_), 0, bytes);
  }
  Buffer(Buffer&& other) noexcept : data_(other.data_) { other.data_ = nullptr; }
  Buffer& operator=(Buffer&& other) noexcept {
    std::free(data_);
    data_ = other.data_;
    other.data_ = nullptr;
    return *this;
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { std::free(data_); }

  T* get() { return data_; }
  const T* get() const { return data_; }
  T& operator[](int64_t i) { return data_[i]; }
  const T& operator[](int64_t i) const { return data_[i]; }

 private:
  T* data_ = nullptr;
};

}  // namespace crossrank

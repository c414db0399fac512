// The tile instructions of AMX: the real ones, and an emulation that runs on any machine.
//
// A tile is 16 rows of 64 bytes: 16 x 16 floats, or 16 x 32 bf16. TileKernel (tile_kernel.h) is written against this
// interface alone, so that what it packs, loads and multiplies is the same with both:
//
//     begin() / end()               configure and release the tiles of this thread
//     zero<t>()                     t = 0
//     load<t>(from, stride)         t = 16 rows of 64 bytes, `stride` bytes apart
//     dot<c, a, b>()                c += a x b, b's rows holding pairs of k (see tile_kernel.h)
//     store<t>(to, stride)
//
// Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, TILELOADD, TDPBF16PS, TILESTORED.
#pragma once

#include "vectors.h"

namespace crossrank {

constexpr int kTileRows = 16;
constexpr int kTileBytes = 64;

#if defined(__AMX_BF16__)
// In assembly: the compiler's intrinsics take no template argument for a tile, and those of GCC 12 do not say that they
// read and write memory.
struct HardwareTiles {
  static void begin() {
    // Palette 1: eight tiles, each up to 16 rows of 64 bytes.
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } config;
    static_assert(sizeof config == 64, "LDTILECFG reads 64 bytes");
    for (int i = 0; i < 8; ++i) config.row_bytes[i] = kTileBytes, config.rows[i] = kTileRows;
    __asm__ volatile("ldtilecfg %0" : : "m"(config));
  }
  static void end() { __asm__ volatile("tilerelease"); }

  template <int t>
  static CROSSRANK_INLINE void zero() {
    __asm__ volatile("tilezero %%tmm%c0" : : "i"(t));
  }
  template <int t>
  static CROSSRANK_INLINE void load(const void* from, int64_t stride) {
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(t) : "memory");
  }
  template <int t>
  static CROSSRANK_INLINE void store(void* to, int64_t stride) {
    __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(t) : "memory");
  }
  // Volatile keeps it in order with the loads, which name no registers that the compiler knows.
  template <int c, int a, int b>
  static CROSSRANK_INLINE void dot() {
    __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(c), "i"(a), "i"(b));
  }
};
#endif

// Bit for bit what the manual's pseudocode says: sums in fp32, even and odd k apart and added at the end, subnormal
// numbers taken and given as zero. Products of two bf16 are exact in fp32, so that a multiply-add rounds once anyway.
struct EmulatedTiles {
  static void begin() {}
  static void end() {}

  template <int t>
  static CROSSRANK_NOINLINE void zero() {
    std::memset(tiles[t], 0, sizeof tiles[t]);
  }
  template <int t>
  static CROSSRANK_NOINLINE void load(const void* from, int64_t stride) {
    for (int row = 0; row < kTileRows; ++row)
      std::memcpy(tiles[t][row], static_cast<const char*>(from) + row * stride, kTileBytes);
  }
  template <int t>
  static CROSSRANK_NOINLINE void store(void* to, int64_t stride) {
    for (int row = 0; row < kTileRows; ++row)
      std::memcpy(static_cast<char*>(to) + row * stride, tiles[t][row], kTileBytes);
  }
  template <int c, int a, int b>
  static CROSSRANK_NOINLINE void dot() {
    for (int row = 0; row < kTileRows; ++row) {
      float even[16] = {}, odd[16] = {};
      for (int pair = 0; pair < 16; ++pair) {
        const float x0 = half(tiles[a][row][pair], 16), x1 = half(tiles[a][row][pair], 0);
        for (int n = 0; n < 16; ++n) {
          even[n] = flushed(even[n] + x0 * half(tiles[b][pair][n], 16));
          odd[n] = flushed(odd[n] + x1 * half(tiles[b][pair][n], 0));
        }
      }
      for (int n = 0; n < 16; ++n) {
        const float sum = flushed(bits_as<float>(tiles[c][row][n]) + flushed(even[n] + odd[n]));
        tiles[c][row][n] = bits_as<uint32_t>(sum);
      }
    }
  }

 private:
  static inline thread_local uint32_t tiles[8][kTileRows][kTileBytes / 4];

  // The bf16 number in the lower (shift 16) or upper (shift 0) half of a word.
  static CROSSRANK_INLINE float half(uint32_t word, int shift) {
    const uint32_t bits = (word << shift) & 0xffff0000u;
    return bits_as<float>((bits & 0x7f800000u) ? bits : bits & 0x80000000u);
  }
  static CROSSRANK_INLINE float flushed(float value) {
    const uint32_t bits = bits_as<uint32_t>(value);
    return bits_as<float>((bits & 0x7f800000u) ? bits : bits & 0x80000000u);
  }
};

}  // namespace crossrank

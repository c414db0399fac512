// Which kernels this machine runs. Built into the portable library, for the oldest CPU there is.
#include <cstring>

#include "api.h"

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

// State that the operating system saves at a context switch, by bit: 1 SSE, 2 AVX, 5 - 7 AVX-512, 17 and 18 AMX.
// Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 13 (XCR0).
uint64_t saved_state() {
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return uint64_t{high} << 32 | low;
}

bool saves(uint64_t bits) { return (saved_state() & bits) == bits; }

constexpr uint64_t kAvxState = 0x6, kAvx512State = 0xe6, kTileState = 0x60000;

// Linux gives tile registers to processes that ask for them; threads started later inherit the permission. Other systems
// are not asked. Source: https://www.kernel.org/doc/html/latest/arch/x86/xstate.html
bool may_use_tiles() {
#if defined(__linux__)
  constexpr long kArchReqXcompPerm = 0x1023, kXfeatureTileData = 18;
  return syscall(SYS_arch_prctl, kArchReqXcompPerm, kXfeatureTileData) == 0;
#else
  return false;
#endif
}

}  // namespace

bool crossrank_cpu_runs(const char* kernel) {
  uint32_t eax, basic, ebx, ecx, edx, bf16_eax = 0, unused;
  if (!__get_cpuid(1, &eax, &ebx, &basic, &edx)) return false;
  constexpr uint32_t kFma = 1u << 12, kOsxsave = 1u << 27, kAvx = 1u << 28;
  if ((basic & (kFma | kOsxsave | kAvx)) != (kFma | kOsxsave | kAvx) || !saves(kAvxState)) return false;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
  if (eax >= 1) __get_cpuid_count(7, 1, &bf16_eax, &unused, &unused, &unused);
  const bool avx2 = ebx >> 5 & 1;
  // F, DQ, BW and VL: what every server CPU with AVX-512 has.
  constexpr uint32_t kAvx512 = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;
  const bool avx512 = avx2 && (ebx & kAvx512) == kAvx512 && saves(kAvx512State);
  if (std::strcmp(kernel, "avx2") == 0) return avx2;
  if (std::strcmp(kernel, "avx512") == 0) return avx512;
  const bool avx512_bf16 = avx512 && (bf16_eax >> 5 & 1);
  if (std::strcmp(kernel, "avx512_bf16") == 0) return avx512_bf16;
  if (std::strcmp(kernel, "amx") != 0) return false;
  const bool tiles = (edx >> 24 & 1) && (edx >> 22 & 1) && saves(kTileState);  // AMX-TILE, AMX-BF16
  return avx512_bf16 && tiles && may_use_tiles();
}
#else
bool crossrank_cpu_runs(const char*) { return false; }
#endif

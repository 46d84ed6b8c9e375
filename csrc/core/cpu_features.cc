#include "core/cpu_features.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace tersor {
namespace {

#if defined(__x86_64__)

struct Cpuid {
  uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Cpuid Leaf(uint32_t leaf, uint32_t subleaf) {
  Cpuid r;
  __get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx);  // leaves zeros when the leaf is absent
  return r;
}

bool Bit(uint32_t word, int bit) { return (word >> bit & 1u) != 0; }

// Which register files the OS saves on a context switch; 0 without OSXSAVE.
uint64_t EnabledStates(uint32_t leaf1_ecx) {
  if (!Bit(leaf1_ecx, 27)) return 0;
  uint32_t lo, hi;
  __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
  return static_cast<uint64_t>(hi) << 32 | lo;
}

CpuFeature Detect() {
  constexpr uint64_t kYmm = 0x6, kZmm = 0xe6;
  const Cpuid one = Leaf(1, 0), seven = Leaf(7, 0), seven_one = seven.eax >= 1 ? Leaf(7, 1) : Cpuid{};
  const uint64_t states = EnabledStates(one.ecx);
  CpuFeature have = CpuFeature::kNone;
  const bool fma = Bit(one.ecx, 12), avx = Bit(one.ecx, 28), f16c = Bit(one.ecx, 29), avx2 = Bit(seven.ebx, 5);
  if ((states & kYmm) != kYmm || !(fma && avx && f16c && avx2)) return have;
  have = have | CpuFeature::kAvx2;
  if (Bit(seven_one.eax, 4)) have = have | CpuFeature::kAvxVnni;
  const bool f = Bit(seven.ebx, 16), dq = Bit(seven.ebx, 17), bw = Bit(seven.ebx, 30), vl = Bit(seven.ebx, 31);
  if ((states & kZmm) != kZmm || !(f && dq && bw && vl)) return have;
  have = have | CpuFeature::kAvx512;
  if (Bit(seven.ecx, 6)) have = have | CpuFeature::kAvx512Vbmi2;
  if (Bit(seven.ecx, 11)) have = have | CpuFeature::kAvx512Vnni;
  return have;
}

#elif defined(__aarch64__) && defined(__linux__)

CpuFeature Detect() {
  constexpr unsigned long kHwcapAsimdDp = 1ul << 20, kHwcap2I8mm = 1ul << 13;
  CpuFeature have = CpuFeature::kNone;
  if (getauxval(AT_HWCAP) & kHwcapAsimdDp) have = have | CpuFeature::kNeonDotprod;
  if (getauxval(AT_HWCAP2) & kHwcap2I8mm) have = have | CpuFeature::kNeonI8mm;
  return have;
}

#else

CpuFeature Detect() { return CpuFeature::kNone; }

#endif

}  // namespace

CpuFeature DetectCpuFeatures() { return Detect(); }

}  // namespace tersor

#pragma once
#include <cstdint>

namespace tersor {

// One bit per dispatch level's need, not per CPUID bit: kAvx2 means AVX2, FMA and F16C with their registers
// saved by the OS; kAvx512 means F, BW, DQ and VL.
enum class CpuFeature : uint32_t {
  kNone = 0,
  kAvx2 = 1u << 0,
  kAvxVnni = 1u << 1,
  kAvx512 = 1u << 2,
  kAvx512Vnni = 1u << 3,
  kNeonDotprod = 1u << 4,
  kNeonI8mm = 1u << 5,
  kAvx512Vbmi2 = 1u << 6,
};

constexpr CpuFeature operator|(CpuFeature a, CpuFeature b) {
  return static_cast<CpuFeature>(static_cast<uint32_t>(a) | static_cast<uint32_t>(b));
}
constexpr bool HasAll(CpuFeature have, CpuFeature need) {
  return (static_cast<uint32_t>(have) & static_cast<uint32_t>(need)) == static_cast<uint32_t>(need);
}

// By CPUID and XGETBV, or HWCAP; never by vendor.
CpuFeature DetectCpuFeatures();

}  // namespace tersor

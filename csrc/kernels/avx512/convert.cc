// Sixteen values a step, the last few under a mask. vcvtph2ps for fp16, integer rounding for bf16.
#include <immintrin.h>

#include <cstring>

#include "kernels/kernel_api.h"

namespace tersor::avx512 {
namespace {

constexpr int64_t kLanes = 16;

struct Bf16 {
  static __m512 ToF32(__m256i h) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16)); }
  static __m256i FromF32(__m512 x) {
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 is_nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    const __m512i chosen = _mm512_mask_or_epi32(rounded, is_nan, bits, _mm512_set1_epi32(0x400000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(chosen, 16));
  }
};

struct F16 {
  static __m512 ToF32(__m256i h) { return _mm512_cvtph_ps(h); }
  static __m256i FromF32(__m512 x) { return _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
};

__mmask16 FirstLanes(int64_t n) { return static_cast<__mmask16>(n >= kLanes ? 0xffffu : (1u << n) - 1u); }

template <typename Half>
void Widen(int64_t n, const uint16_t* src, float* dst) {
  for (int64_t i = 0; i < n; i += kLanes) {
    const __mmask16 live = FirstLanes(n - i);
    _mm512_mask_storeu_ps(dst + i, live, Half::ToF32(_mm256_maskz_loadu_epi16(live, src + i)));
  }
}

template <typename Half>
void Narrow(int64_t n, const float* src, uint16_t* dst) {
  for (int64_t i = 0; i < n; i += kLanes) {
    const __mmask16 live = FirstLanes(n - i);
    _mm256_mask_storeu_epi16(dst + i, live, Half::FromF32(_mm512_maskz_loadu_ps(live, src + i)));
  }
}

void ToF32(DType from, int64_t n, const void* src, float* dst) {
  if (from == DType::kF32)
    std::memcpy(dst, src, static_cast<size_t>(n) * sizeof(float));
  else if (from == DType::kBf16)
    Widen<Bf16>(n, static_cast<const uint16_t*>(src), dst);
  else
    Widen<F16>(n, static_cast<const uint16_t*>(src), dst);
}

void FromF32(DType to, int64_t n, const float* src, void* dst) {
  if (to == DType::kF32)
    std::memcpy(dst, src, static_cast<size_t>(n) * sizeof(float));
  else if (to == DType::kBf16)
    Narrow<Bf16>(n, src, static_cast<uint16_t*>(dst));
  else
    Narrow<F16>(n, src, static_cast<uint16_t*>(dst));
}

#include "kernels/multiply.h"

}  // namespace

const ConvertKernel& Convert() {
  static constexpr ConvertKernel kernel = {"convert_avx512", ToF32, FromF32, Multiply};
  return kernel;
}

}  // namespace tersor::avx512

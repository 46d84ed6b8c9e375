// Eight values a step: F16C for fp16, integer rounding for bf16. The last few go through a padded block.
#include <immintrin.h>

#include <cstring>

#include "kernels/kernel_api.h"

namespace tersor::avx2 {
namespace {

constexpr int64_t kLanes = 8;

struct Bf16 {
  static __m256 ToF32(__m128i h) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16)); }
  static __m128i FromF32(__m256 x) {
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    const __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, is_nan), 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
  }
};

struct F16 {
  static __m256 ToF32(__m128i h) { return _mm256_cvtph_ps(h); }
  static __m128i FromF32(__m256 x) { return _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
};

__m128i Load(const uint16_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
void Store(uint16_t* p, __m128i v) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), v); }

template <typename Half>
void Widen(int64_t n, const uint16_t* src, float* dst) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) _mm256_storeu_ps(dst + i, Half::ToF32(Load(src + i)));
  if (i == n) return;
  uint16_t in[kLanes] = {};
  float out[kLanes];
  std::memcpy(in, src + i, static_cast<size_t>(n - i) * sizeof in[0]);
  _mm256_storeu_ps(out, Half::ToF32(Load(in)));
  std::memcpy(dst + i, out, static_cast<size_t>(n - i) * sizeof out[0]);
}

template <typename Half>
void Narrow(int64_t n, const float* src, uint16_t* dst) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) Store(dst + i, Half::FromF32(_mm256_loadu_ps(src + i)));
  if (i == n) return;
  float in[kLanes] = {};
  uint16_t out[kLanes];
  std::memcpy(in, src + i, static_cast<size_t>(n - i) * sizeof in[0]);
  Store(out, Half::FromF32(_mm256_loadu_ps(in)));
  std::memcpy(dst + i, out, static_cast<size_t>(n - i) * sizeof out[0]);
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
  static constexpr ConvertKernel kernel = {"convert_avx2", ToF32, FromF32, Multiply};
  return kernel;
}

}  // namespace tersor::avx2

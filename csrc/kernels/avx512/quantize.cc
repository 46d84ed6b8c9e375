// 64 values a step. Both passes equal the definition bit for bit: the range is exact, and the saturating packs
// do what the clamp of the definition does, because its bounds are integers.
#include <immintrin.h>

#include "kernels/kernel_api.h"

namespace tersor::avx512 {
namespace {

constexpr uint32_t kInfinityBits = 0x7f800000u, kSignBit = 0x80000000u;

// The first n of 16 lanes; n may be negative or above 16.
__mmask16 FirstLanes(int64_t n) { return static_cast<__mmask16>(n >= 16 ? 0xffffu : n <= 0 ? 0u : (1u << n) - 1u); }

// The bits of positive floats are ordered as signed integers, those of negative floats as unsigned ones, and a
// NaN lies above infinity in both: two integer maxima give the range and tell whether every value is finite.
struct Extremes {
  __m512i positive, negative;
  void Add(__m512i bits) {
    __asm__("" : "+v"(bits));  // one load, not one per maximum
    positive = _mm512_max_epi32(positive, bits);
    negative = _mm512_max_epu32(negative, bits);
  }
  void Merge(const Extremes& other) {
    positive = _mm512_max_epi32(positive, other.positive);
    negative = _mm512_max_epu32(negative, other.negative);
  }
};

void RowRange(int64_t k, const float* x, float* range) {
  const __m512i zero = _mm512_setzero_si512(), minus_zero = _mm512_set1_epi32(static_cast<int32_t>(kSignBit));
  Extremes e0 = {zero, minus_zero}, e1 = e0, e2 = e0, e3 = e0;
  int64_t i = 0;
  for (; i + 64 <= k; i += 64) {
    e0.Add(_mm512_loadu_si512(x + i));
    e1.Add(_mm512_loadu_si512(x + i + 16));
    e2.Add(_mm512_loadu_si512(x + i + 32));
    e3.Add(_mm512_loadu_si512(x + i + 48));
  }
  if (i < k) {
    e0.Add(_mm512_maskz_loadu_epi32(FirstLanes(k - i), x + i));
    e1.Add(_mm512_maskz_loadu_epi32(FirstLanes(k - i - 16), x + i + 16));
    e2.Add(_mm512_maskz_loadu_epi32(FirstLanes(k - i - 32), x + i + 32));
    e3.Add(_mm512_maskz_loadu_epi32(FirstLanes(k - i - 48), x + i + 48));
  }
  e0.Merge(e1);
  e2.Merge(e3);
  e0.Merge(e2);
  const uint32_t hi = static_cast<uint32_t>(_mm512_reduce_max_epi32(e0.positive));
  const uint32_t lo = _mm512_reduce_max_epu32(e0.negative);
  if (hi >= kInfinityBits || (lo & ~kSignBit) >= kInfinityBits) {
    range[0] = range[1] = __builtin_nanf("");
    return;
  }
  range[0] = _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(static_cast<int32_t>(lo)))) + 0.0f;  // -0 becomes 0
  range[1] = _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(static_cast<int32_t>(hi))));
}

struct Quantizer {
  __m512 inv_scale;
  __m512i upper, zero_point, lane_order;

  Quantizer(float inv, int32_t zero)
      : inv_scale(_mm512_set1_ps(inv)),
        upper(_mm512_castps_si512(_mm512_set1_ps(static_cast<float>(255 - zero)))),
        zero_point(_mm512_set1_epi16(static_cast<int16_t>(zero))),
        lane_order(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15)) {}

  // The upper clamp comes before the conversion, which turns what is too large into the most negative integer;
  // what is too small becomes just that, and the packs clamp it to 0. As integers, because the bits of finite
  // floats below a bound >= 0 are ordered like them and integer minima have ports to spare.
  __m512i ToInt(__m512 x) const {
    const __m512i t = _mm512_min_epi32(_mm512_castps_si512(_mm512_mul_ps(x, inv_scale)), upper);
    return _mm512_cvt_roundps_epi32(_mm512_castsi512_ps(t), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }

  __m512i ToBytes(__m512 x0, __m512 x1, __m512 x2, __m512 x3) const {
    const __m512i lo = _mm512_adds_epi16(_mm512_packs_epi32(ToInt(x0), ToInt(x1)), zero_point);
    const __m512i hi = _mm512_adds_epi16(_mm512_packs_epi32(ToInt(x2), ToInt(x3)), zero_point);
    return _mm512_permutexvar_epi32(lane_order, _mm512_packus_epi16(lo, hi));
  }
};

int32_t QuantizeRow(int64_t k, const float* x, float inv_scale, int32_t zero_point, uint8_t* q) {
  const Quantizer quantizer(inv_scale, zero_point);
  __m512i sums = _mm512_setzero_si512();
  int64_t i = 0;
  for (; i + 64 <= k; i += 64) {
    const __m512i bytes = quantizer.ToBytes(_mm512_loadu_ps(x + i), _mm512_loadu_ps(x + i + 16),
                                            _mm512_loadu_ps(x + i + 32), _mm512_loadu_ps(x + i + 48));
    _mm512_storeu_si512(q + i, bytes);
    sums = _mm512_add_epi64(sums, _mm512_sad_epu8(bytes, _mm512_setzero_si512()));
  }
  if (i < k) {
    const int64_t left = k - i;
    const __mmask64 live = (__mmask64{1} << left) - 1;
    const __m512i bytes = quantizer.ToBytes(_mm512_maskz_loadu_ps(FirstLanes(left), x + i),
                                            _mm512_maskz_loadu_ps(FirstLanes(left - 16), x + i + 16),
                                            _mm512_maskz_loadu_ps(FirstLanes(left - 32), x + i + 32),
                                            _mm512_maskz_loadu_ps(FirstLanes(left - 48), x + i + 48));
    _mm512_mask_storeu_epi8(q + i, live, bytes);
    sums = _mm512_add_epi64(sums, _mm512_sad_epu8(_mm512_maskz_mov_epi8(live, bytes), _mm512_setzero_si512()));
  }
  return static_cast<int32_t>(_mm512_reduce_add_epi64(sums));
}

}  // namespace

const QuantizeKernel& Quantize() {
  static constexpr QuantizeKernel kernel = {"quantize_avx512", RowRange, QuantizeRow};
  return kernel;
}

}  // namespace tersor::avx512

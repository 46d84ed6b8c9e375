// 32 values a step. Both passes equal the definition bit for bit: the range is exact, and the saturating packs do
// what the clamp of the definition does, because its bounds are integers.
#include <immintrin.h>

#include <cstring>

#include "kernels/kernel_api.h"

namespace tersor::avx2 {
namespace {

constexpr int32_t kInfinityBits = 0x7f800000, kSignBit = static_cast<int32_t>(0x80000000u);
constexpr int64_t kStep = 32;

// Ordered as integers, the bits of positive floats rise with their value when read as signed, those of negative
// floats with their magnitude when read as unsigned; NaNs lie above infinity in both. So two integer maxima give the
// range and tell whether every value is finite.
struct Extremes {
  __m256i positive, negative;
  void Add(__m256i bits) {
    positive = _mm256_max_epi32(positive, bits);
    negative = _mm256_max_epu32(negative, bits);
  }
  void Add(const Extremes& other) {
    positive = _mm256_max_epi32(positive, other.positive);
    negative = _mm256_max_epu32(negative, other.negative);
  }
};

__m256i LoadBits(const float* x) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)); }

// All lanes of the maximum; `Max` is one of the two above.
template <typename Max>
__m128i Reduce(__m256i v, Max max) {
  __m128i r = max(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  r = max(r, _mm_shuffle_epi32(r, 0x4e));
  return max(r, _mm_shuffle_epi32(r, 0xb1));
}

// The rest of a row, zero padded: zero is neutral in a range that always holds it.
struct Rest {
  float x[kStep] = {};
  Rest(const float* from, int64_t n) { std::memcpy(x, from, static_cast<size_t>(n) * sizeof(float)); }
};

void AddStep(Extremes* e, const float* x) {
  for (int j = 0; j < 4; ++j) e[j].Add(LoadBits(x + 8 * j));
}

void RowRange(int64_t k, const float* x, float* range) {
  const __m256i zero = _mm256_setzero_si256(), minus_zero = _mm256_set1_epi32(kSignBit);
  Extremes e[4] = {{zero, minus_zero}, {zero, minus_zero}, {zero, minus_zero}, {zero, minus_zero}};
  int64_t i = 0;
  for (; i + kStep <= k; i += kStep) AddStep(e, x + i);
  if (i < k) AddStep(e, Rest(x + i, k - i).x);
  for (int j = 1; j < 4; ++j) e[0].Add(e[j]);
  const __m128i hi = Reduce(e[0].positive, [](__m128i a, __m128i b) { return _mm_max_epi32(a, b); });
  const __m128i lo = Reduce(e[0].negative, [](__m128i a, __m128i b) { return _mm_max_epu32(a, b); });
  if (_mm_cvtsi128_si32(hi) >= kInfinityBits || (_mm_cvtsi128_si32(lo) & ~kSignBit) >= kInfinityBits) {
    range[0] = range[1] = __builtin_nanf("");
    return;
  }
  range[0] = _mm_cvtss_f32(_mm_castsi128_ps(lo)) + 0.0f;  // -0 becomes 0
  range[1] = _mm_cvtss_f32(_mm_castsi128_ps(hi));
}

struct Quantizer {
  __m256 inv_scale, upper;
  __m256i zero_point, lane_order;

  Quantizer(float inv, int32_t zero)
      : inv_scale(_mm256_set1_ps(inv)),
        upper(_mm256_set1_ps(static_cast<float>(255 - zero))),
        zero_point(_mm256_set1_epi16(static_cast<int16_t>(zero))),
        lane_order(_mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)) {}

  // The upper clamp comes before the conversion, which turns what is too large into the most negative integer; what
  // is too small becomes just that, and the packs clamp it to 0.
  __m256i ToInt(const float* x) const {
    return _mm256_cvtps_epi32(_mm256_min_ps(_mm256_mul_ps(_mm256_loadu_ps(x), inv_scale), upper));
  }

  __m256i ToBytes(const float* x) const {
    const __m256i lo = _mm256_adds_epi16(_mm256_packs_epi32(ToInt(x), ToInt(x + 8)), zero_point);
    const __m256i hi = _mm256_adds_epi16(_mm256_packs_epi32(ToInt(x + 16), ToInt(x + 24)), zero_point);
    return _mm256_permutevar8x32_epi32(_mm256_packus_epi16(lo, hi), lane_order);
  }
};

int32_t QuantizeRow(int64_t k, const float* x, float inv_scale, int32_t zero_point, uint8_t* q) {
  const Quantizer quantizer(inv_scale, zero_point);
  __m256i sums = _mm256_setzero_si256();
  int64_t i = 0;
  for (; i + kStep <= k; i += kStep) {
    const __m256i bytes = quantizer.ToBytes(x + i);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(q + i), bytes);
    sums = _mm256_add_epi64(sums, _mm256_sad_epu8(bytes, _mm256_setzero_si256()));
  }
  const __m128i pair = _mm_add_epi64(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
  int32_t sum = static_cast<int32_t>(_mm_cvtsi128_si64(pair) + _mm_extract_epi64(pair, 1));
  if (i < k) {
    uint8_t rest[kStep];
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(rest), quantizer.ToBytes(Rest(x + i, k - i).x));
    std::memcpy(q + i, rest, static_cast<size_t>(k - i));
    for (int64_t j = 0; j < k - i; ++j) sum += rest[j];
  }
  return sum;
}

}  // namespace

const QuantizeKernel& Quantize() {
  static constexpr QuantizeKernel kernel = {"quantize_avx2", RowRange, QuantizeRow};
  return kernel;
}

}  // namespace tersor::avx2

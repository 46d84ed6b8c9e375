// The registers of depthwise_s8.cc, over their width: four, two or one lane of 16 channels.
#pragma once
#include <immintrin.h>

#include <cstring>

#include "kernels/kernel_api.h"

namespace tersor::avx512vnni {
namespace {

constexpr int32_t kBlock = static_cast<int32_t>(kDepthwiseBlock), kRegisters = 4;
constexpr int32_t kFormBytes = kBlock * 4, kRegisterBytes = 64;

// kOutputs neighbouring outputs of a filter of this width meet the pixels of kGroups groups of four, exactly.
template <int32_t kWidth>
struct Sliding {
  static constexpr int32_t kOutputs = kWidth - 1, kGroups = (kWidth - 1) / 2, kForms = kOutputs * kGroups;
  static_assert(kWidth + kOutputs - 1 == 4 * kGroups, "no pixel beyond those of the outputs is read");
};

struct Lanes4 {
  using I = __m512i;
  using F = __m512;
  static constexpr int32_t kLanes = 4;
  static I Load(const void* p) { return _mm512_loadu_si512(p); }
  static void Store(void* p, I v) { _mm512_storeu_si512(p, v); }
  static I Zero() { return _mm512_setzero_si512(); }
  static I Set(int32_t v) { return _mm512_set1_epi32(v); }
  static F SetF(float v) { return _mm512_set1_ps(v); }
  static F LoadF(const float* p) { return _mm512_loadu_ps(p); }
  static I Low8(I a, I b) { return _mm512_unpacklo_epi8(a, b); }
  static I High8(I a, I b) { return _mm512_unpackhi_epi8(a, b); }
  static I Low16(I a, I b) { return _mm512_unpacklo_epi16(a, b); }
  static I High16(I a, I b) { return _mm512_unpackhi_epi16(a, b); }
  static I Dot(I acc, I x, I w) { return _mm512_dpbusd_epi32(acc, x, w); }
  static I Add(I a, I b) { return _mm512_add_epi32(a, b); }
  static I Sub(I a, I b) { return _mm512_sub_epi32(a, b); }
  static F ToFloat(I a) { return _mm512_cvtepi32_ps(a); }
  static I Round(F a) { return _mm512_cvtps_epi32(a); }
  static F Mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F AddF(F a, F b) { return _mm512_add_ps(a, b); }
  static F Max(F a, F b) { return _mm512_max_ps(a, b); }
  static F Min(F a, F b) { return _mm512_min_ps(a, b); }
  static I Pack32(I a, I b) { return _mm512_packs_epi32(a, b); }
  static I Pack16(I a, I b) { return _mm512_packus_epi16(a, b); }
  static void StoreSome(uint8_t* y, I v, int32_t live) {
    if (live == 64)
      _mm512_storeu_si512(y, v);
    else
      _mm512_mask_storeu_epi8(y, (__mmask64{1} << live) - 1, v);
  }
};

struct Lanes2 {
  using I = __m256i;
  using F = __m256;
  static constexpr int32_t kLanes = 2;
  static I Load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
  static void Store(void* p, I v) { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }
  static I Zero() { return _mm256_setzero_si256(); }
  static I Set(int32_t v) { return _mm256_set1_epi32(v); }
  static F SetF(float v) { return _mm256_set1_ps(v); }
  static F LoadF(const float* p) { return _mm256_loadu_ps(p); }
  static I Low8(I a, I b) { return _mm256_unpacklo_epi8(a, b); }
  static I High8(I a, I b) { return _mm256_unpackhi_epi8(a, b); }
  static I Low16(I a, I b) { return _mm256_unpacklo_epi16(a, b); }
  static I High16(I a, I b) { return _mm256_unpackhi_epi16(a, b); }
  static I Dot(I acc, I x, I w) { return _mm256_dpbusd_epi32(acc, x, w); }
  static I Add(I a, I b) { return _mm256_add_epi32(a, b); }
  static I Sub(I a, I b) { return _mm256_sub_epi32(a, b); }
  static F ToFloat(I a) { return _mm256_cvtepi32_ps(a); }
  static I Round(F a) { return _mm256_cvtps_epi32(a); }
  static F Mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F AddF(F a, F b) { return _mm256_add_ps(a, b); }
  static F Max(F a, F b) { return _mm256_max_ps(a, b); }
  static F Min(F a, F b) { return _mm256_min_ps(a, b); }
  static I Pack32(I a, I b) { return _mm256_packs_epi32(a, b); }
  static I Pack16(I a, I b) { return _mm256_packus_epi16(a, b); }
  static void StoreSome(uint8_t* y, I v, int32_t live) {
    _mm256_mask_storeu_epi8(y, static_cast<__mmask32>((uint64_t{1} << live) - 1), v);
  }
};

struct Lanes1 {
  using I = __m128i;
  using F = __m128;
  static constexpr int32_t kLanes = 1;
  static I Load(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
  static void Store(void* p, I v) { _mm_storeu_si128(static_cast<__m128i*>(p), v); }
  static I Zero() { return _mm_setzero_si128(); }
  static I Set(int32_t v) { return _mm_set1_epi32(v); }
  static F SetF(float v) { return _mm_set1_ps(v); }
  static F LoadF(const float* p) { return _mm_loadu_ps(p); }
  static I Low8(I a, I b) { return _mm_unpacklo_epi8(a, b); }
  static I High8(I a, I b) { return _mm_unpackhi_epi8(a, b); }
  static I Low16(I a, I b) { return _mm_unpacklo_epi16(a, b); }
  static I High16(I a, I b) { return _mm_unpackhi_epi16(a, b); }
  static I Dot(I acc, I x, I w) { return _mm_dpbusd_epi32(acc, x, w); }
  static I Add(I a, I b) { return _mm_add_epi32(a, b); }
  static I Sub(I a, I b) { return _mm_sub_epi32(a, b); }
  static F ToFloat(I a) { return _mm_cvtepi32_ps(a); }
  static I Round(F a) { return _mm_cvtps_epi32(a); }
  static F Mul(F a, F b) { return _mm_mul_ps(a, b); }
  static F AddF(F a, F b) { return _mm_add_ps(a, b); }
  static F Max(F a, F b) { return _mm_max_ps(a, b); }
  static F Min(F a, F b) { return _mm_min_ps(a, b); }
  static I Pack32(I a, I b) { return _mm_packs_epi32(a, b); }
  static I Pack16(I a, I b) { return _mm_packus_epi16(a, b); }
  static void StoreSome(uint8_t* y, I v, int32_t live) {
    _mm_mask_storeu_epi8(y, static_cast<__mmask16>((1u << live) - 1u), v);
  }
};

// Values of the channels of a block, in the order that interleaving leaves.
template <typename V>
struct Quads {
  typename V::I v[kRegisters];

  [[gnu::always_inline]] void Clear() {
#pragma GCC unroll 4
    for (int32_t r = 0; r < kRegisters; ++r) v[r] = V::Zero();
  }
  [[gnu::always_inline]] static Quads Interleave(const typename V::I* pixel) {
    const typename V::I a = V::Low8(pixel[0], pixel[1]), b = V::High8(pixel[0], pixel[1]);
    const typename V::I c = V::Low8(pixel[2], pixel[3]), d = V::High8(pixel[2], pixel[3]);
    return {{V::Low16(a, c), V::High16(a, c), V::Low16(b, d), V::High16(b, d)}};
  }
  [[gnu::always_inline]] void Add(const Quads& x, const char* form) {
#pragma GCC unroll 4
    for (int32_t r = 0; r < kRegisters; ++r) v[r] = V::Dot(v[r], x.v[r], V::Load(form + r * kRegisterBytes));
  }
};

// The sums as they are, in the order of the channels.
template <typename V>
struct Sums {
  Sums(int32_t, int32_t* to, int64_t stride) : acc(to), ld_acc(stride) {}

  void operator()(int32_t p, const Quads<V>& sums) const {
    alignas(64) int32_t lanes[kRegisters][4 * V::kLanes];
    for (int32_t r = 0; r < kRegisters; ++r) V::Store(lanes[r], sums.v[r]);
    for (int32_t lane = 0; lane < V::kLanes; ++lane)
      for (int32_t r = 0; r < kRegisters; ++r)
        std::memcpy(acc + p * ld_acc + 16 * lane + 4 * r, lanes[r] + 4 * lane, 16);
  }

  int32_t* acc;
  int64_t ld_acc;
};

// The finished bytes: FinishS8Args without a residual, with a clamp as the activation.
template <typename V>
struct FinishedBytes {
  FinishedBytes(int32_t channels, const FinishS8Args& f)
      : live(channels),
        low(V::SetF(f.low)),
        high(V::SetF(f.high)),
        inv_scale(V::SetF(f.inv_scale)),
        least(V::SetF(static_cast<float>(-f.zero))),
        most(V::SetF(static_cast<float>(255 - f.zero))),
        zero(V::Set(f.zero)),
        y(f.y),
        ldy(f.ldy) {
    Arrange(f.offset, offset);
    Arrange(f.scale, scale);
    Arrange(f.bias, bias);
  }

  [[gnu::always_inline]] void operator()(int32_t p, const Quads<V>& sums) const {
    typename V::I q[kRegisters];
#pragma GCC unroll 4
    for (int32_t r = 0; r < kRegisters; ++r) {
      const typename V::I t = V::Sub(sums.v[r], V::Load(offset + 4 * V::kLanes * r));
      typename V::F v = V::Mul(V::ToFloat(t), V::LoadF(scale + 4 * V::kLanes * r));
      v = V::Min(high, V::Max(low, V::AddF(v, V::LoadF(bias + 4 * V::kLanes * r))));
      q[r] = V::Add(V::Round(V::Min(V::Max(V::Mul(v, inv_scale), least), most)), zero);
    }
    V::StoreSome(y + p * ldy, V::Pack16(V::Pack32(q[0], q[1]), V::Pack32(q[2], q[3])), live);
  }

 private:
  // From the order of the channels to that of the registers; beyond the live ones zeros.
  template <typename T>
  void Arrange(const T* from, T* to) const {
    T whole[kBlock] = {};
    std::memcpy(whole, from, static_cast<size_t>(live) * sizeof(T));
    for (int32_t r = 0; r < kRegisters; ++r)
      for (int32_t lane = 0; lane < V::kLanes; ++lane)
        std::memcpy(to + 4 * (r * V::kLanes + lane), whole + 16 * lane + 4 * r, 4 * sizeof(T));
  }

  int32_t live;
  typename V::F low, high, inv_scale, least, most;
  typename V::I zero;
  uint8_t* y;
  int64_t ldy;
  alignas(64) int32_t offset[kBlock];
  alignas(64) float scale[kBlock], bias[kBlock];
};

}  // namespace
}  // namespace tersor::avx512vnni

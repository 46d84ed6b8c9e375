// 6x16 tile. Panel: [ceil(k / 4)][nr][4] int8. A stays row-major: 4 bytes of a row are broadcast.
// Exact: vpdpbusd (unsigned x signed) sums into int32 and never saturates.
#include <immintrin.h>

#include "kernels/avxvnni/isa_name.h"
#include "kernels/gemm_s8_tile.h"

namespace tersor::TERSOR_ISA_NAME {
namespace {

alignas(64) constexpr int32_t kLaneMasks[16] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};

struct AvxVnni {
  using I = __m256i;
  using F = __m256;
  struct Mask {
    bool all;
    __m256i lanes;
  };
  static constexpr int32_t kLanes = 8, kVectors = 2, kKr = 4, kMr = 6;
  static constexpr bool kWidens = false;
  static_assert(kMr * kVectors + kVectors + 1 <= 16, "accumulators, weights and broadcast fit the registers");

  static I Weights(const char* b) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(b)); }
  static I Broadcast(const char* a) {
    int32_t quad;
    std::memcpy(&quad, a, sizeof quad);
    return _mm256_set1_epi32(quad);
  }
  static I MulAdd(I acc, I a, I w) {
#ifdef __AVX512VNNI__
    return _mm256_dpbusd_epi32(acc, a, w);
#else
    return _mm256_dpbusd_avx_epi32(acc, a, w);
#endif
  }

  static I Set(int32_t v) { return _mm256_set1_epi32(v); }
  static F Set(float v) { return _mm256_set1_ps(v); }
  static I Sub(I a, I b) { return _mm256_sub_epi32(a, b); }
  static I Mul(I a, I b) { return _mm256_mullo_epi32(a, b); }
  static F Add(F a, F b) { return _mm256_add_ps(a, b); }
  static F Mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F ToFloat(I v) { return _mm256_cvtepi32_ps(v); }

  // The first n of 8 lanes; n may be negative or above 8.
  static Mask First(int32_t n) {
    const int32_t live = n > kLanes ? kLanes : n < 0 ? 0 : n;
    return {live == kLanes, LoadInts(kLaneMasks + kLanes - live)};
  }
  static I Load(const int32_t* p) { return LoadInts(p); }
  static F Load(const float* p) { return _mm256_loadu_ps(p); }
  static F Load(const float* p, Mask live) { return live.all ? Load(p) : _mm256_maskload_ps(p, live.lanes); }
  static void Store(int32_t* p, Mask live, I v) {
    if (live.all)
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v);
    else
      _mm256_maskstore_epi32(p, live.lanes, v);
  }
  static void Store(float* p, Mask live, F v) {
    if (live.all)
      _mm256_storeu_ps(p, v);
    else
      _mm256_maskstore_ps(p, live.lanes, v);
  }

 private:
  static I LoadInts(const int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
};

}  // namespace

const GemmS8Kernel& GemmS8() {
  using Layout = Tile<AvxVnni, 1>::Layout;
  static constexpr GemmS8Kernel kernel = {"gemm_s8_6x16_" TERSOR_QUOTE(TERSOR_ISA_NAME),
                                          AvxVnni::kMr,
                                          Tile<AvxVnni, 1>::kNr,
                                          AvxVnni::kKr,
                                          Layout::Bytes,
                                          Layout::Pack,
                                          Layout::Unpack,
                                          RunRows<AvxVnni>,
                                          AvxVnni::kMr,
                                          RunRows<AvxVnni>};
  return kernel;
}

}  // namespace tersor::TERSOR_ISA_NAME

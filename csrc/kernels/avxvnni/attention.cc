// 6 rows by 16 columns. vpdpwssd adds two products of int16 to a sum.
#include "kernels/attention_tile.h"
#include "kernels/avx2/attention_lanes.h"
#include "kernels/avxvnni/isa_name.h"

namespace tersor::TERSOR_ISA_NAME {
namespace {

struct Vector : Pairs8 {
  static constexpr int32_t kRows = 6, kGroups = 1;
  static I MulAdd(I acc, I a, I w) {
#ifdef __AVX512VNNI__
    return _mm256_dpwssd_epi32(acc, a, w);
#else
    return _mm256_dpwssd_avx_epi32(acc, a, w);
#endif
  }
};

}  // namespace

const AttentionKernel& Attention() {
  static constexpr AttentionKernel kernel =
      ::Attention<Vector>::Kernel("attention_6x16_" TERSOR_QUOTE(TERSOR_ISA_NAME));
  return kernel;
}

}  // namespace tersor::TERSOR_ISA_NAME

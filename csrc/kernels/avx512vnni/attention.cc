// 6 rows by 64 columns: 24 sums, 4 of weights and a broadcast. vpdpwssd adds two products of int16 to a sum.
#include "kernels/attention_tile.h"
#include "kernels/avx512/attention_lanes.h"

namespace tersor::avx512vnni {
namespace {

struct Vector : Pairs16 {
  static constexpr int32_t kRows = 6, kGroups = 4;
  static I MulAdd(I acc, I a, I w) { return _mm512_dpwssd_epi32(acc, a, w); }
};

}  // namespace

const AttentionKernel& Attention() {
  static constexpr AttentionKernel kernel = ::Attention<Vector>::Kernel("attention_6x64_avx512vnni");
  return kernel;
}

}  // namespace tersor::avx512vnni

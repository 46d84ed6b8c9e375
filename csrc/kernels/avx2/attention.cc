// 6 rows by 16 columns: 12 sums, 2 of weights, a broadcast and a product. vpmaddwd adds two products of int16.
#include "kernels/attention_tile.h"
#include "kernels/avx2/attention_lanes.h"

namespace tersor::avx2 {
namespace {

struct Vector : Pairs8 {
  static constexpr int32_t kRows = 6, kGroups = 1;
  static I MulAdd(I acc, I a, I w) { return _mm256_add_epi32(acc, _mm256_madd_epi16(a, w)); }
};

}  // namespace

const AttentionKernel& Attention() {
  static constexpr AttentionKernel kernel = ::Attention<Vector>::Kernel("attention_6x16_avx2");
  return kernel;
}

}  // namespace tersor::avx2

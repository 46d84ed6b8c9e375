// 4 rows by 16 columns.
#include "kernels/attention_tile.h"
#include "kernels/neon_dotprod/attention_lanes.h"

namespace tersor::neon_dotprod {
namespace {

struct Vector : Pairs4 {
  static constexpr int32_t kRows = 4, kGroups = 1;
};

}  // namespace

const AttentionKernel& Attention() {
  static constexpr AttentionKernel kernel = ::Attention<Vector>::Kernel("attention_4x16_neon_dotprod");
  return kernel;
}

}  // namespace tersor::neon_dotprod

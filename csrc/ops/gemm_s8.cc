// The exact integers of one product, for tests, benches and NumPy users. The production path is linear_s8.
#include <algorithm>
#include <cstring>
#include <string>

#include "core/scratch.h"
#include "ops/packed_s8.h"
#include "tersor/linear_s8.h"

namespace tersor {
namespace {

struct Job {
  const PackedViewS8& weight;
  int64_t m, lda;
  const uint8_t* a;
  int32_t* c;
  int64_t ldc;
};

void RunPanel(void* context, int32_t panel) {
  const Job& job = *static_cast<const Job*>(context);
  const GemmS8Kernel& kernel = *job.weight.kernel;
  const int64_t column = int64_t{panel} * kernel.nr;
  GemmS8Args g{};
  g.n = static_cast<int32_t>(std::min<int64_t>(kernel.nr, job.weight.n - column));
  g.k = static_cast<int32_t>(job.weight.k);
  g.lda = job.lda;
  g.panel = job.weight.Panel(0, panel);
  g.col_sum = job.weight.col_sum + column;
  g.ld_acc = job.ldc;
  const int64_t step = job.m <= kernel.row_limit ? kernel.row_limit : kernel.mr;
  for (int64_t row = 0; row < job.m; row += step) {
    g.m = static_cast<int32_t>(std::min(step, job.m - row));
    g.a = job.a + row * job.lda;
    g.acc = job.c + row * job.ldc + column;
    (job.m <= kernel.row_limit ? kernel.rows : kernel.tile)(g);
  }
}

}  // namespace

void GemmS8(int64_t m, const uint8_t* a, int64_t lda, const void* packed, size_t packed_bytes, int32_t* c, int64_t ldc,
            const Executor& executor) {
  const PackedViewS8 weight = ViewPackedS8(packed, packed_bytes);
  if (weight.k > kMaxDepthS8)
    throw Error("gemm_s8: k=" + std::to_string(weight.k) + " does not fit exact int32 sums; at most " +
                std::to_string(kMaxDepthS8));
  if (m < 0 || lda < weight.k || ldc < weight.n) throw Error("gemm_s8: negative m or row strides shorter than a row");
  if (m == 0) return;
  const int64_t kr = weight.kernel->kr, k_pad = (weight.k + kr - 1) / kr * kr;
  Scratch scratch(static_cast<size_t>(m * k_pad));
  if (!scratch.ok()) throw Error("gemm_s8: out of memory");
  uint8_t* padded = scratch.Take<uint8_t>(static_cast<size_t>(m * k_pad));
  for (int64_t i = 0; i < m; ++i) {
    std::memcpy(padded + i * k_pad, a + i * lda, static_cast<size_t>(weight.k));
    std::memset(padded + i * k_pad + weight.k, 0, static_cast<size_t>(k_pad - weight.k));
  }
  Job job{weight, m, k_pad, padded, c, ldc};
  executor.run(static_cast<int32_t>(weight.layout.n_pad / weight.kernel->nr), RunPanel, &job);
}

}  // namespace tersor

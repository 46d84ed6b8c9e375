// Front end: validate, split among threads.
#include "tersor/linear_lut4.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "ops/linear_lut4_worker.h"

namespace tersor {
namespace {

void RunTask(void* context, int32_t task) {
  LinearLut4Job& job = *static_cast<LinearLut4Job*>(context);
  const int64_t n = job.weight.spec.n;
  Range rows{0, job.args.m}, columns{0, n};
  if (job.by_rows) {
    rows = EvenSplit(job.args.m, job.tasks)[task];
  } else if (job.tasks > 1) {
    const bool few = job.args.m <= job.kernels.lut4->max_m;
    const Lut4Bands bands(job.weight, *job.kernels.gemm_s8);
    const int64_t width = few ? kPanelRowsLut4 : bands.width;
    const Range share = EvenSplit(few ? job.weight.layout.panels : bands.count, job.tasks)[task];
    columns = {share.begin * width, std::min(share.end * width, n)};
  }
  LinearLut4Worker worker(job, rows, columns);
  Scratch scratch(worker.ScratchBytes());
  if (scratch.ok())
    worker.Run(scratch);
  else
    job.out_of_memory = true;
}

struct GemmJob {
  const PackedViewLut4& weight;
  const Selection& kernels;
  int64_t m, lda;
  const uint8_t* a;
  int32_t* c;
  int64_t ldc;
  std::atomic<bool> out_of_memory{false};
};

void RunGemmBand(void* context, int32_t index) {
  GemmJob& job = *static_cast<GemmJob*>(context);
  const GemmS8Kernel& kernel = *job.kernels.gemm_s8;
  DecodedBand band(job.weight, job.kernels);
  Scratch scratch(band.ScratchBytes());
  if (!scratch.ok()) {
    job.out_of_memory = true;
    return;
  }
  band.Take(scratch);
  band.Decode(index);
  const int64_t begin = index * Lut4Bands(job.weight, kernel).width, width = Lut4Bands(job.weight, kernel).width;
  GemmS8Args g{};
  g.k = static_cast<int32_t>(job.weight.spec.k);
  g.lda = job.lda;
  g.ld_acc = job.ldc;
  // neon_dotprod starts its sums from those of the columns, of which each part of k has its own.
  for (int64_t column = 0; column < width && begin + column < job.weight.spec.n; column += kernel.nr) {
    int32_t col_sum[64] = {};
    for (int64_t part = 0; part < job.weight.layout.parts; ++part)
      for (int32_t j = 0; j < kernel.nr; ++j) col_sum[j] += band.ColSum(part)[column + j];
    g.n = static_cast<int32_t>(std::min<int64_t>(kernel.nr, job.weight.spec.n - begin - column));
    g.panel = band.Panel(column, 0);
    g.col_sum = col_sum;
    for (int64_t row = 0; row < job.m; row += kernel.mr) {
      g.m = static_cast<int32_t>(std::min<int64_t>(kernel.mr, job.m - row));
      g.a = job.a + row * job.lda;
      g.acc = job.c + row * job.ldc + begin + column;
      kernel.tile(g);
    }
  }
}

}  // namespace

void LinearLut4(const LinearS8Args& args, const Executor& executor) {
  const PackedViewLut4 weight = ViewPackedLut4(args.packed, args.packed_bytes);
  CheckLinearArgs("linear_lut4", args, weight.spec.n);
  if (args.m == 0) return;
  LinearLut4Job job{args, weight, Selected()};
  if (executor.threads > 1 && args.m * weight.spec.n * weight.spec.k >= kSerialMacsS8) {
    // By columns where there are enough: each band is then decoded by one thread only.
    const int64_t bands =
        args.m <= job.kernels.lut4->max_m ? weight.layout.panels : Lut4Bands(weight, *job.kernels.gemm_s8).count;
    job.by_rows = bands < executor.threads && args.m >= 2 * int64_t{job.kernels.gemm_s8->mr} * executor.threads;
    job.tasks = job.by_rows ? executor.threads : static_cast<int32_t>(std::min<int64_t>(executor.threads, bands));
  }
  if (job.tasks == 1)
    RunTask(&job, 0);
  else
    executor.run(job.tasks, RunTask, &job);
  if (job.out_of_memory) throw Error("linear_lut4: out of memory for the quantised rows");
}

void GemmLut4(int64_t m, const uint8_t* a, int64_t lda, const void* packed, size_t packed_bytes, int32_t* c,
              int64_t ldc, const Executor& executor) {
  const PackedViewLut4 weight = ViewPackedLut4(packed, packed_bytes);
  const int64_t n = weight.spec.n, k = weight.spec.k, k_pad = RoundUp(k, kStepLut4);
  if (k > kMaxDepthS8)
    throw Error("gemm_lut4: k=" + std::to_string(k) + " does not fit exact int32 sums; at most " +
                std::to_string(kMaxDepthS8));
  if (m < 0 || lda < k || ldc < n) throw Error("gemm_lut4: negative m or row strides shorter than a row");
  if (m == 0) return;
  // Memory of its own: the thread's scratch holds the decoded band.
  std::vector<uint8_t> padded(static_cast<size_t>(m * k_pad));
  for (int64_t i = 0; i < m; ++i) std::memcpy(padded.data() + i * k_pad, a + i * lda, static_cast<size_t>(k));
  const Selection& kernels = Selected();
  GemmJob job{weight, kernels, m, k_pad, padded.data(), c, ldc};
  executor.run(static_cast<int32_t>(Lut4Bands(weight, *kernels.gemm_s8).count), RunGemmBand, &job);
  if (job.out_of_memory) throw Error("gemm_lut4: out of memory for a decoded band");
}

}  // namespace tersor

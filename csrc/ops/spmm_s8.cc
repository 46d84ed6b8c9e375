// Front end: validate, split among threads.
#include "tersor/spmm_s8.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "ops/band_split.h"
#include "ops/packed_s8.h"
#include "ops/spmm_s8_rows.h"
#include "ops/spmm_s8_worker.h"

namespace tersor {
namespace {

// Below this many multiply-adds a call takes less than about 20 us and waking a thread costs more than it saves.
constexpr int64_t kSerialMacs = int64_t{5} << 19;

int64_t FirstBandOf(const PackedViewSpmmS8& weight, int32_t task, int32_t tasks) {
  return FirstBand<kBandRowsS8>(weight, 1, task, tasks);
}

void RunTask(void* context, int32_t task) {
  SpmmS8Job& job = *static_cast<SpmmS8Job*>(context);
  Range rows{0, job.args.m}, bands{0, job.weight.layout.bands};
  if (job.by_rows)
    rows = EvenSplit(job.args.m, job.tasks)[task];
  else if (job.tasks > 1)
    bands = {FirstBandOf(job.weight, task, job.tasks), FirstBandOf(job.weight, task + 1, job.tasks)};
  if (rows.count() == 0 || bands.count() == 0) return;
  SpmmS8Worker worker(job, rows, bands);
  Scratch scratch(worker.ScratchBytes());
  if (scratch.ok())
    worker.Run(scratch);
  else
    job.out_of_memory = true;
}

}  // namespace

void SpmmS8(const LinearS8Args& args, const Executor& executor) { SpmmS8With(Selected(), args, executor); }

void SpmmS8With(const Selection& kernels, const LinearS8Args& args, const Executor& executor) {
  const PackedViewSpmmS8 weight = ViewPackedSpmmS8(args.packed, args.packed_bytes);
  CheckLinearArgs("spmm_s8", args, weight.n);
  if (args.m == 0) return;
  const PackedViewSpmmS8Rows& few = weight.rows;
  if (few.kernel != nullptr && args.m <= few.kernel->max_m &&
      RowsPaySpmmS8(args.m, weight.n * few.blocks, weight.quads_count))
    return RunSpmmS8Rows(args, weight, few, kernels, executor);
  SpmmS8Job job{args, weight, kernels};
  const int64_t rows = weight.kernel->rows, macs = args.m * (weight.steps * rows * 4 + weight.n);
  if (executor.threads > 1 && macs >= kSerialMacs) {
    job.tasks = executor.threads;
    job.by_rows = 2 * args.m >= int64_t{weight.kernel->strip} * job.tasks;
    if (!job.by_rows) job.tasks = static_cast<int32_t>(std::min<int64_t>(job.tasks, weight.layout.bands));
  }
  if (job.tasks == 1)
    RunTask(&job, 0);
  else
    executor.run(job.tasks, RunTask, &job);
  if (job.out_of_memory) throw Error("spmm_s8: out of memory for the quantised rows");
}

void SpmmS8Sums(int64_t m, const uint8_t* a, int64_t lda, const void* packed, size_t packed_bytes, int32_t* c,
                int64_t ldc) {
  const PackedViewSpmmS8 weight = ViewPackedSpmmS8(packed, packed_bytes);
  if (m < 0 || lda < weight.k || ldc < weight.n) throw Error("spmm_s8: negative m or row strides shorter than a row");
  const SpmmS8Kernel& kernel = *weight.kernel;
  const size_t k_pad = static_cast<size_t>(RoundUp(weight.k, 64)), strip = static_cast<size_t>(kernel.strip);
  const size_t sums = kBandRowsS8 * strip;
  Scratch scratch(Scratch::Padded<uint8_t>(strip * k_pad) + 2 * kPanelBytesSpmmS8 + Scratch::Padded<int32_t>(sums));
  if (!scratch.ok()) throw Error("spmm_s8: out of memory");
  uint8_t* padded = scratch.Take<uint8_t>(strip * k_pad);
  uint8_t* packed_panel = scratch.Take<uint8_t>(kPanelBytesSpmmS8);
  uint8_t* panel = scratch.Take<uint8_t>(kPanelBytesSpmmS8);
  int32_t* acc = scratch.Take<int32_t>(sums);
  for (int64_t row = 0; row < m; row += kernel.strip) {
    const int64_t tokens = std::min<int64_t>(kernel.strip, m - row);
    std::memset(padded, 0, strip * k_pad);
    for (int64_t i = 0; i < tokens; ++i)
      std::memcpy(padded + static_cast<size_t>(i) * k_pad, a + (row + i) * lda, static_cast<size_t>(weight.k));
    for (int64_t band = 0; band < weight.layout.bands; ++band) {
      for (int64_t block = 0; block < weight.layout.blocks; ++block) {
        weight.PackPanel(block, tokens, padded + block * weight.layout.depth, static_cast<int64_t>(k_pad), packed_panel,
                         panel);
        SpmmS8Args args = weight.Band(block, band);
        args.tokens = static_cast<int32_t>(tokens);
        args.panel = panel;
        args.acc = acc;
        weight.Multiply(args);
      }
      const int64_t column = band * kBandRowsS8, live = std::min<int64_t>(kBandRowsS8, weight.n - column);
      for (int64_t i = 0; i < tokens; ++i)
        for (int64_t j = 0; j < live; ++j) c[(row + i) * ldc + column + j] = acc[j * kernel.strip + i];
    }
  }
}

}  // namespace tersor

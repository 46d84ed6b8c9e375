// Front end: validate, split among threads.
#include "tersor/spmm_f32.h"

#include <algorithm>
#include <string>

#include "ops/band_split.h"
#include "ops/input_rows.h"
#include "ops/spmm_f32_worker.h"

namespace tersor {
namespace {

// Below this many multiply-adds a call takes less than about 20 us and waking a thread costs more than it saves.
constexpr int64_t kSerialMacs = int64_t{5} << 17;

int64_t FirstBandOf(const PackedViewSpmmF32& weight, int32_t task, int32_t tasks) {
  const int64_t groups = weight.layout.blocks * (kBandRowsF32 / weight.kernel->rows);  // each costs about one step
  return FirstBand<kBandRowsF32>(weight, groups, task, tasks);
}

void RunTask(void* context, int32_t task) {
  SpmmF32Job& job = *static_cast<SpmmF32Job*>(context);
  Range rows{0, job.args.m}, bands{0, job.weight.layout.bands};
  if (job.by_rows)
    rows = EvenSplit(job.args.m, job.tasks)[task];
  else if (job.tasks > 1)
    bands = {FirstBandOf(job.weight, task, job.tasks), FirstBandOf(job.weight, task + 1, job.tasks)};
  if (rows.count() == 0 || bands.count() == 0) return;
  SpmmF32Worker worker(job, rows, bands);
  Scratch scratch(worker.ScratchBytes());
  if (scratch.ok())
    worker.Run(scratch);
  else
    job.out_of_memory = true;
}

}  // namespace

void SpmmF32(const SpmmF32Args& args, const Executor& executor) {
  const PackedViewSpmmF32 weight = ViewPackedSpmmF32(args.packed, args.packed_bytes);
  CheckRows("spmm_f32", args, weight.n);
  if (args.m == 0) return;
  SpmmF32Job job{args, weight, Selected()};
  const int64_t macs = args.m * (weight.steps * weight.kernel->rows + weight.n);
  if (executor.threads > 1 && macs >= kSerialMacs) {
    job.tasks = executor.threads;
    job.by_rows = args.m >= int64_t{weight.kernel->strip} * job.tasks;
    if (!job.by_rows) job.tasks = static_cast<int32_t>(std::min<int64_t>(job.tasks, weight.layout.bands));
  }
  if (job.tasks == 1)
    RunTask(&job, 0);
  else
    executor.run(job.tasks, RunTask, &job);
  if (job.out_of_memory) throw Error("spmm_f32: out of memory for the sums");
}

}  // namespace tersor

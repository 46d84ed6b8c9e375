// Front end: validate, split among threads.
#include "tersor/spmm_f32.h"

#include <algorithm>
#include <string>

#include "ops/spmm_f32_worker.h"

namespace tersor {
namespace {

// Below this many multiply-adds a call takes less than about 20 us and waking a thread costs more than it saves.
constexpr int64_t kSerialMacs = int64_t{5} << 17;

void CheckArgs(const SpmmF32Args& args, int64_t n) {
  const auto fail = [](const std::string& what) { throw Error("spmm_f32: " + what); };
  if (args.m < 0) fail("m=" + std::to_string(args.m) + " is negative");
  if (args.m > 0 && (args.x == nullptr || args.y == nullptr)) fail("x and y must not be null");
  if (args.m > 1 && args.ldy < n) fail("row stride of y is shorter than a row");
  const int32_t dtype = static_cast<int32_t>(args.dtype), activation = static_cast<int32_t>(args.activation);
  if (dtype < 0 || dtype > static_cast<int32_t>(DType::kF16)) fail("unknown dtype code " + std::to_string(dtype));
  if (activation < 0 || activation >= kActivationCount)
    fail("unknown activation code " + std::to_string(activation) + "; codes are 0 to " +
         std::to_string(kActivationCount - 1));
}

// The bands before `band`, weighed by their steps.
int64_t StepsBefore(const PackedViewSpmmF32& weight, int64_t band) {
  int64_t steps = 0;
  const int64_t group = std::min(band * (kBandRowsF32 / weight.kernel->rows), weight.layout.groups);
  for (int64_t block = 0; block < weight.layout.blocks; ++block) {
    const int64_t* starts = weight.starts + block * weight.layout.groups;
    steps += starts[group] - starts[0];
  }
  return steps;
}

// The first band of a task: the one up to which the earlier tasks have had their share of the steps. Each group of each
// block counts for one step more, since it costs something without any.
int64_t FirstBand(const PackedViewSpmmF32& weight, int32_t task, int32_t tasks) {
  const int64_t bands = weight.layout.bands, extra = weight.layout.blocks * (kBandRowsF32 / weight.kernel->rows);
  if (task == tasks) return bands;
  const int64_t share = (weight.steps + bands * extra) * task / tasks;
  int64_t band = 0, before = 0;
  for (; band < bands; ++band) {
    const int64_t after = StepsBefore(weight, band + 1) + (band + 1) * extra;
    if (before + after > 2 * share) break;  // a band goes to the side on which more than half of it lies
    before = after;
  }
  return band;
}

void RunTask(void* context, int32_t task) {
  SpmmF32Job& job = *static_cast<SpmmF32Job*>(context);
  Range rows{0, job.args.m}, bands{0, job.weight.layout.bands};
  if (job.by_rows)
    rows = EvenSplit(job.args.m, job.tasks)[task];
  else if (job.tasks > 1)
    bands = {FirstBand(job.weight, task, job.tasks), FirstBand(job.weight, task + 1, job.tasks)};
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
  CheckArgs(args, weight.n);
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

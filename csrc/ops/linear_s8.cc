// Front end: validate, split among threads.
#include "tersor/linear_s8.h"

#include <algorithm>
#include <string>

#include "ops/input_rows.h"
#include "ops/linear_s8_worker.h"

namespace tersor {
namespace {

// Columns of a thread from which on threads share columns instead of rows: each has its part of the weight in its own
// L2, and that all of them quantise all of the rows is a hundredth of their work.
constexpr int64_t kWideColumns = 512;

void RunTask(void* context, int32_t task) {
  LinearS8Job& job = *static_cast<LinearS8Job*>(context);
  const int64_t nr = job.weight.kernel->nr, n = job.weight.n;
  Range rows{0, job.args.m}, columns{0, n};
  if (job.by_rows) {
    rows = EvenSplit(job.args.m, job.tasks)[task];
  } else if (job.tasks > 1) {
    const Range panels = EvenSplit(job.weight.layout.n_pad / nr, job.tasks)[task];
    columns = {panels.begin * nr, std::min(panels.end * nr, n)};
  }
  LinearS8Worker worker(job, rows, columns);
  Scratch scratch(worker.ScratchBytes());
  if (scratch.ok())
    worker.Run(scratch);
  else
    job.out_of_memory = true;
}

}  // namespace

void LinearS8(const LinearS8Args& args, const Executor& executor) { LinearS8With(Selected(), args, executor); }

void LinearS8With(const Selection& kernels, const LinearS8Args& args, const Executor& executor) {
  const PackedViewS8 weight = ViewPackedS8(args.packed, args.packed_bytes);
  CheckLinearArgs("linear_s8", args, weight.n);
  if (args.m == 0) return;
  LinearS8Job job{args, weight, kernels};
  if (executor.threads > 1 && args.m * weight.n * weight.k >= kSerialMacsS8) {
    job.tasks = executor.threads;
    const bool wide = weight.n >= kWideColumns * executor.threads;
    job.by_rows = !wide && args.m >= 2 * int64_t{weight.kernel->mr} * executor.threads;
    if (!job.by_rows)
      job.tasks = static_cast<int32_t>(std::min<int64_t>(job.tasks, weight.layout.n_pad / weight.kernel->nr));
  }
  if (job.tasks == 1)
    RunTask(&job, 0);
  else
    executor.run(job.tasks, RunTask, &job);
  if (job.out_of_memory) throw Error("linear_s8: out of memory for the quantised rows");
}

void Activate(Activation activation, int64_t n, float* x) {
  const int32_t code = static_cast<int32_t>(activation);
  if (code < 0 || code >= kActivationCount) throw Error("activation: unknown code " + std::to_string(code));
  if (activation != Activation::kNone) Selected().activation->apply(activation, n, x);
}

}  // namespace tersor

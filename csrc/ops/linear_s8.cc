// Front end: validate, split among threads.
#include "tersor/linear_s8.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "ops/linear_s8_worker.h"

namespace tersor {
namespace {

// Below this many multiply-adds a call takes less than about 20 us and waking a thread costs more than it saves.
constexpr int64_t kSerialMacs = int64_t{5} << 19;

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

void Check(const LinearS8Args& args, const PackedViewS8& weight) {
  const auto fail = [](const std::string& what) { throw Error("linear_s8: " + what); };
  if (args.m < 0) fail("m=" + std::to_string(args.m) + " is negative");
  if (args.m > 0 && (args.x == nullptr || args.y == nullptr)) fail("x and y must not be null");
  if (args.m > 1 && args.ldy < weight.n) fail("row stride of y is shorter than a row");
  const int32_t dtype = static_cast<int32_t>(args.dtype), activation = static_cast<int32_t>(args.activation);
  if (dtype < 0 || dtype > static_cast<int32_t>(DType::kF16)) fail("unknown dtype code " + std::to_string(dtype));
  if (activation < 0 || activation >= kActivationCount)
    fail("unknown activation code " + std::to_string(activation) + "; codes are 0 to " +
         std::to_string(kActivationCount - 1));
  if (!(args.x_scale >= 0.0f) || !std::isfinite(args.x_scale))
    fail("x_scale=" + std::to_string(args.x_scale) + "; it is 0 (dynamic) or a finite positive scale");
  if (args.x_scale > 0.0f && !std::isnormal(args.x_scale)) fail("x_scale is subnormal");
  if (args.x_zero_point < 0 || args.x_zero_point > 255)
    fail("x_zero_point=" + std::to_string(args.x_zero_point) + " is outside [0, 255]");
}

}  // namespace

void LinearS8(const LinearS8Args& args, const Executor& executor) {
  const PackedViewS8 weight = ViewPackedS8(args.packed, args.packed_bytes);
  Check(args, weight);
  if (args.m == 0) return;
  LinearS8Job job{args, weight, Selected()};
  if (executor.threads > 1 && args.m * weight.n * weight.k >= kSerialMacs) {
    job.tasks = executor.threads;
    job.by_rows = args.m >= 2 * int64_t{weight.kernel->mr} * executor.threads;
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

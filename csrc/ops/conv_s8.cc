// Front end of convolution: validate, split among threads.
#include "tersor/conv_s8.h"

#include <algorithm>
#include <string>

#include "ops/conv_s8_worker.h"
#include "tersor/linear_s8.h"

namespace tersor {
namespace {

void CheckArgs(const ConvS8Args& args, const ConvShape& shape) {
  constexpr int64_t kMost = int64_t{1} << 24;
  const auto fail = [](const std::string& what) { throw Error("conv_s8: " + what); };
  if (args.batch < 0 || args.height < 1 || args.width < 1 || args.batch > kMost || args.height > kMost ||
      args.width > kMost)
    fail("an input of " + std::to_string(args.batch) + " pictures of " + std::to_string(args.height) + " x " +
         std::to_string(args.width));
  if (shape.OutHeight(args.height) < 1 || shape.OutWidth(args.width) < 1)
    fail("the filter is larger than the padded input of " + std::to_string(args.height) + " x " +
         std::to_string(args.width));
  if ((args.y == nullptr) == (args.y_f32 == nullptr) && args.batch > 0) fail("exactly one of y and y_f32 must be set");
  if (args.x == nullptr && args.batch > 0) fail("x must not be null");
  CheckConvActivation("conv_s8", args.activation);
  if (args.y != nullptr) CheckQuantized("conv_s8", "y", args.y_as);
  if (args.residual != nullptr) CheckQuantized("conv_s8", "residual", args.residual_as);
  if (args.x_as.scale == args.x_as.scale) CheckQuantized("conv_s8", "x", args.x_as);  // NaN: every result is NaN
}

template <typename Worker>
void RunWorker(ConvJob& job, Worker worker) {
  Scratch scratch(worker.ScratchBytes());
  if (scratch.ok())
    worker.Run(scratch);
  else
    job.out_of_memory = true;
}

void RunTask(void* context, int32_t task) {
  ConvJob& job = *static_cast<ConvJob*>(context);
  if (job.weight.depthwise != nullptr)
    return RunWorker(job, DepthwiseWorker(job, EvenSplit(job.args.batch * job.out_h, job.tasks)[task]));
  const int64_t columns = job.weight.shape.out_channels / job.weight.shape.groups;
  if (job.by_pixels) return RunWorker(job, ConvGemmWorker(job, EvenSplit(job.pixels(), job.tasks)[task], {0, columns}));
  const int64_t nr = job.weight.Group(0).kernel->nr;
  const Range panels = EvenSplit((columns + nr - 1) / nr, job.tasks)[task];
  RunWorker(job, ConvGemmWorker(job, {0, job.pixels()}, {panels.begin * nr, std::min(panels.end * nr, columns)}));
}

// Threads pay from about kSerialMacsS8 multiply-adds of a dense product on; those of a depthwise filter take eight
// times as long, and so much work comes with every output.
constexpr int64_t kDepthwiseCost = 8, kOutputCost = 40;

void Split(ConvJob& job, int32_t threads) {
  const ConvShape& s = job.weight.shape;
  const int64_t outputs = job.pixels() * s.out_channels;
  const int64_t macs = outputs * s.depth() * (job.weight.depthwise != nullptr ? kDepthwiseCost : 1);
  if (threads <= 1 || macs + outputs * kOutputCost < kSerialMacsS8) return;
  job.tasks = threads;
  if (job.weight.depthwise != nullptr) {
    job.tasks = static_cast<int32_t>(std::min<int64_t>(threads, job.args.batch * job.out_h));
    return;
  }
  const GemmS8Kernel& kernel = *job.weight.Group(0).kernel;
  job.by_pixels = s.groups > 1 || job.pixels() >= int64_t{2} * kernel.mr * threads;
  const int64_t panels = (s.out_channels + kernel.nr - 1) / kernel.nr;
  job.tasks = static_cast<int32_t>(std::min<int64_t>(threads, job.by_pixels ? job.pixels() : panels));
}

}  // namespace

void ConvS8(const ConvS8Args& args, const Executor& executor) {
  const PackedConvView weight = ViewPackedConv(args.packed, args.packed_bytes);
  CheckArgs(args, weight.shape);
  if (args.batch == 0) return;
  ConvJob job{args, weight, Selected(), weight.shape.OutHeight(args.height), weight.shape.OutWidth(args.width)};
  Split(job, executor.threads);
  for (int64_t g = 0; weight.depthwise == nullptr && g < weight.shape.groups; ++g) weight.Group(g);  // or throws here
  if (job.tasks == 1)
    RunTask(&job, 0);
  else
    executor.run(job.tasks, RunTask, &job);
  if (job.out_of_memory) throw Error("conv_s8: out of memory");
}

}  // namespace tersor

// Float pictures to bytes that lie channels last.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>

#include "core/registry.h"
#include "core/scratch.h"
#include "ops/finish_s8.h"
#include "ops/quantize_rows.h"
#include "ops/range.h"

namespace tersor {
namespace {

constexpr int64_t kRun = 128;                          // pixels that are turned around at a time
constexpr int64_t kParallelValues = int64_t{1} << 17;  // below this a call stays on one thread

struct Job {
  const QuantizeImagesArgs& args;
  const Selection& kernels;
  int64_t pixels;  // of a picture
  int32_t tasks = 1;
  bool out_of_memory = false;
};

void Params(Job& job, int64_t image) {
  const QuantizeImagesArgs& args = job.args;
  const int64_t count = job.pixels * args.channels;
  float range[2];
  job.kernels.quantize->row_range(count, args.x + image * count, range);
  if (std::isnan(range[0])) {
    args.as[image] = {std::numeric_limits<float>::quiet_NaN(), 0};
  } else if (args.x_scale > 0.0f) {
    args.as[image] = {args.x_scale, args.x_zero_point};
  } else {
    const RowParams params = ChooseRowParams(range);
    args.as[image] = {params.scale, params.zero_point};
  }
}

// q[p][c] = planes[c][p]
void TurnAround(int64_t pixels, int64_t channels, const uint8_t* planes, uint8_t* q) {
  if (channels == 3) {
    for (int64_t p = 0; p < pixels; ++p)
      for (int64_t c = 0; c < 3; ++c) q[3 * p + c] = planes[c * kRun + p];
    return;
  }
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t p = 0; p < pixels; ++p) q[p * channels + c] = planes[c * kRun + p];
}

// Pixels [begin, end) of a picture.
void QuantizeRun(const Job& job, int64_t image, Range run, uint8_t* planes) {
  const QuantizeImagesArgs& args = job.args;
  const Quantized& as = args.as[image];
  uint8_t* q = args.q + (image * job.pixels + run.begin) * args.channels;
  const float* x = args.x + image * job.pixels * args.channels;
  const QuantizeKernel& kernel = *job.kernels.quantize;
  if (std::isnan(as.scale)) {
    std::memset(q, 0, static_cast<size_t>(run.count() * args.channels));
    return;
  }
  const float inv_scale = 1.0f / as.scale;
  if (args.channels_last || args.channels == 1) {
    kernel.quantize_row(run.count() * args.channels, x + run.begin * args.channels, inv_scale, as.zero_point, q);
    return;
  }
  for (int64_t c = 0; c < args.channels; ++c)
    kernel.quantize_row(run.count(), x + c * job.pixels + run.begin, inv_scale, as.zero_point, planes + c * kRun);
  TurnAround(run.count(), args.channels, planes, q);
}

void RunTask(void* context, int32_t task) {
  Job& job = *static_cast<Job*>(context);
  Scratch scratch(Scratch::Padded<uint8_t>(static_cast<size_t>(kRun * job.args.channels)));
  if (!scratch.ok()) {
    job.out_of_memory = true;
    return;
  }
  uint8_t* planes = scratch.Take<uint8_t>(static_cast<size_t>(kRun * job.args.channels));
  const int64_t runs = (job.pixels + kRun - 1) / kRun;
  const Range mine = EvenSplit(job.args.batch * runs, job.tasks)[task];
  for (int64_t i = mine.begin; i < mine.end; ++i) {
    const int64_t begin = i % runs * kRun;
    QuantizeRun(job, i / runs, {begin, std::min(begin + kRun, job.pixels)}, planes);
  }
}

void RunParams(void* context, int32_t image) { Params(*static_cast<Job*>(context), image); }

}  // namespace

void QuantizeImages(const QuantizeImagesArgs& args, const Executor& executor) {
  constexpr int64_t kMost = int64_t{1} << 24;
  for (int64_t extent : {args.channels, args.height, args.width})
    if (extent < 1 || extent > kMost) throw Error("quantize_images: extent " + std::to_string(extent));
  if (args.batch < 0 || args.batch > kMost) throw Error("quantize_images: batch " + std::to_string(args.batch));
  if (args.batch == 0) return;
  if (args.x == nullptr || args.q == nullptr || args.as == nullptr) throw Error("quantize_images: a pointer is null");
  if (args.x_scale != 0.0f) CheckQuantized("quantize_images", "x", {args.x_scale, args.x_zero_point});
  Job job{args, Selected(), args.height * args.width};
  if (executor.threads > 1 && args.batch * job.pixels * args.channels >= kParallelValues) job.tasks = executor.threads;
  if (job.tasks == 1 || args.batch == 1)
    for (int64_t i = 0; i < args.batch; ++i) Params(job, i);
  else
    executor.run(static_cast<int32_t>(args.batch), RunParams, &job);
  if (job.tasks == 1)
    RunTask(&job, 0);
  else
    executor.run(job.tasks, RunTask, &job);
  if (job.out_of_memory) throw Error("quantize_images: out of memory");
}

}  // namespace tersor

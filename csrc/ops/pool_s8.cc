// Pooling and addition on bytes.
#include <algorithm>
#include <cstring>
#include <string>

#include "ops/finish_s8.h"
#include "ops/packed_conv_s8.h"
#include "ops/range.h"

namespace tersor {
namespace {

constexpr int64_t kParallelBytes = int64_t{1} << 17;  // below this much input a call stays on one thread

struct PoolJob {
  const PoolS8Args& args;
  const Selection& kernels;
  int64_t out_h, out_w;
  int32_t tasks = 1;
  bool out_of_memory = false;
};

// The part of a window that lies inside the input.
struct Window {
  Range y, x;
  int64_t count() const { return y.count() * x.count(); }
};

Range Inside(int64_t out, int64_t stride, int64_t pad, int64_t extent, int64_t size) {
  const int64_t begin = out * stride - pad;
  return {std::max<int64_t>(begin, 0), std::min(begin + extent, size)};
}

class PoolWorker {
 public:
  explicit PoolWorker(const PoolJob& job) : job_(job), args_(job.args), channels_(job.args.window.in_channels) {}

  size_t ScratchBytes() const {
    return Scratch::Padded<int32_t>(static_cast<size_t>(channels_)) + Finisher::ScratchBytes(channels_);
  }

  void Run(Range rows, Scratch& scratch) {
    int32_t* acc = scratch.Take<int32_t>(static_cast<size_t>(channels_));
    Finisher finisher(job_.kernels, {ConvActivation::kNone, nullptr, {}, nullptr, args_.y, args_.y_as, channels_},
                      channels_, scratch);
    const ConvShape& s = args_.window;
    int64_t counted = -1;
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      const int64_t image = row / job_.out_h;
      const uint8_t* x = args_.x + image * args_.height * args_.width * channels_;
      for (int64_t column = 0; column < job_.out_w; ++column) {
        const Window window{Inside(row % job_.out_h, s.stride_h, s.pad_top, s.kernel_h, args_.height),
                            Inside(column, s.stride_w, s.pad_left, s.kernel_w, args_.width)};
        const int64_t pixel = row * job_.out_w + column;
        if (args_.pooling == Pooling::kMax) {
          Max(x, window, args_.y + pixel * channels_);
          continue;
        }
        if (window.count() != counted) SetConstants(finisher, counted = window.count());
        Sum(x, window, acc);
        finisher.Run(acc, channels_, 1, static_cast<int32_t>(channels_), pixel, 0, 0);
      }
    }
  }

 private:
  const uint8_t* At(const uint8_t* image, int64_t y, int64_t x) const {
    return image + (y * args_.width + x) * channels_;
  }

  void Max(const uint8_t* image, const Window& window, uint8_t* y) const {
    std::memcpy(y, At(image, window.y.begin, window.x.begin), static_cast<size_t>(channels_));
    for (int64_t iy = window.y.begin; iy < window.y.end; ++iy)
      for (int64_t ix = window.x.begin; ix < window.x.end; ++ix)
        job_.kernels.conv_s8->max(channels_, At(image, iy, ix), y);
  }

  void Sum(const uint8_t* image, const Window& window, int32_t* acc) const {
    std::fill_n(acc, channels_, 0);
    for (int64_t iy = window.y.begin; iy < window.y.end; ++iy)
      for (int64_t ix = window.x.begin; ix < window.x.end; ++ix)
        job_.kernels.conv_s8->sum(channels_, At(image, iy, ix), acc);
  }

  void SetConstants(const Finisher& finisher, int64_t inside) const {
    const int64_t whole = args_.window.kernel_h * args_.window.kernel_w;
    const float divisor = static_cast<float>(args_.pooling == Pooling::kAverage ? whole : inside);
    std::fill_n(finisher.offset, channels_, static_cast<int32_t>(args_.x_as.zero_point * inside));
    std::fill_n(finisher.scale, channels_, args_.x_as.scale / divisor);
    std::fill_n(finisher.bias, channels_, 0.0f);
  }

  const PoolJob& job_;
  const PoolS8Args& args_;
  int64_t channels_;
};

void RunPool(void* context, int32_t task) {
  PoolJob& job = *static_cast<PoolJob*>(context);
  PoolWorker worker(job);
  Scratch scratch(worker.ScratchBytes());
  if (scratch.ok())
    worker.Run(EvenSplit(job.args.batch * job.out_h, job.tasks)[task], scratch);
  else
    job.out_of_memory = true;
}

void CheckPool(const PoolS8Args& args) {
  const ConvShape& s = args.window;
  CheckConvShape("pool_s8", s);
  if (s.in_channels != s.out_channels || s.groups != s.in_channels || s.dilation_h != 1 || s.dilation_w != 1)
    throw Error("pool_s8: a window has as many groups and outputs as channels and no dilation");
  // Each window then holds at least one pixel of the input.
  if (s.pad_top >= s.kernel_h || s.pad_left >= s.kernel_w || s.pad_bottom >= s.kernel_h || s.pad_right >= s.kernel_w)
    throw Error("pool_s8: the padding is as large as the window");
  constexpr int64_t kMost = int64_t{1} << 24;
  if (args.batch < 0 || args.height < 1 || args.width < 1 || args.batch > kMost || args.height > kMost ||
      args.width > kMost || s.OutHeight(args.height) < 1 || s.OutWidth(args.width) < 1)
    throw Error("pool_s8: the window does not fit the input of " + std::to_string(args.height) + " x " +
                std::to_string(args.width));
  if (args.x == nullptr || args.y == nullptr) throw Error("pool_s8: x and y must not be null");
  CheckQuantized("pool_s8", "x", args.x_as);
  if (args.pooling != Pooling::kMax) CheckQuantized("pool_s8", "y", args.y_as);
}

struct AddJob {
  const AddS8Args& args;
  const Selection& kernels;
  int32_t tasks = 1;
  bool out_of_memory = false;
};

void RunAdd(void* context, int32_t task) {
  constexpr int64_t kRun = 256;
  AddJob& job = *static_cast<AddJob*>(context);
  const AddS8Args& args = job.args;
  Scratch scratch(Scratch::Padded<int32_t>(kRun) + Finisher::ScratchBytes(kRun));
  if (!scratch.ok()) {
    job.out_of_memory = true;
    return;
  }
  int32_t* acc = scratch.Take<int32_t>(kRun);
  const Finisher finisher(job.kernels, {args.activation, args.b, args.b_as, args.y_f32, args.y, args.y_as, kRun}, kRun,
                          scratch);
  std::fill_n(finisher.offset, kRun, args.a_as.zero_point);
  std::fill_n(finisher.scale, kRun, args.a_as.scale);
  std::fill_n(finisher.bias, kRun, 0.0f);
  const Range runs = EvenSplit((args.count + kRun - 1) / kRun, job.tasks)[task];
  for (int64_t run = runs.begin; run < runs.end; ++run) {
    const int64_t live = std::min(kRun, args.count - run * kRun);
    std::fill_n(acc, live, 0);
    job.kernels.conv_s8->sum(live, args.a + run * kRun, acc);
    finisher.Run(acc, kRun, 1, static_cast<int32_t>(live), run, 0, 0);
  }
}

}  // namespace

void PoolS8(const PoolS8Args& args, const Executor& executor) {
  if (args.batch == 0) return;
  CheckPool(args);
  PoolJob job{args, Selected(), args.window.OutHeight(args.height), args.window.OutWidth(args.width)};
  const int64_t rows = args.batch * job.out_h;
  if (executor.threads > 1 && args.batch * args.height * args.width * args.window.in_channels >= kParallelBytes)
    job.tasks = static_cast<int32_t>(std::min<int64_t>(executor.threads, rows));
  if (job.tasks == 1)
    RunPool(&job, 0);
  else
    executor.run(job.tasks, RunPool, &job);
  if (job.out_of_memory) throw Error("pool_s8: out of memory");
}

void AddS8(const AddS8Args& args, const Executor& executor) {
  if (args.count < 0 || (args.count > 0 && (args.a == nullptr || (args.y == nullptr) == (args.y_f32 == nullptr))))
    throw Error("add_s8: a and exactly one of y and y_f32 must be set");
  if (args.count == 0) return;
  CheckConvActivation("add_s8", args.activation);
  CheckQuantized("add_s8", "a", args.a_as);
  if (args.b != nullptr) CheckQuantized("add_s8", "b", args.b_as);
  if (args.y != nullptr) CheckQuantized("add_s8", "y", args.y_as);
  AddJob job{args, Selected()};
  if (executor.threads > 1 && args.count >= kParallelBytes) job.tasks = executor.threads;
  if (job.tasks == 1)
    RunAdd(&job, 0);
  else
    executor.run(job.tasks, RunAdd, &job);
  if (job.out_of_memory) throw Error("add_s8: out of memory");
}

}  // namespace tersor

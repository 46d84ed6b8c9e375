#include "ops/spmm_s8_rows.h"

#include <algorithm>
#include <atomic>

#include "core/scratch.h"
#include "ops/input_rows.h"
#include "ops/packed_s8.h"
#include "ops/range.h"

namespace tersor {
namespace {

// Below this many weights a call takes less than about 20 us and waking a thread costs more than it saves.
constexpr int64_t kSerialWeights = int64_t{3} << 19;

struct Job {
  const LinearS8Args& args;
  const PackedViewSpmmS8& weight;
  const PackedViewSpmmS8Rows& rows;
  const Selection& kernels;
  int32_t tasks = 1;
  std::atomic<bool> out_of_memory{false};
};

// A mask takes about as long as 16 non-zeros.
int64_t CostBefore(const PackedViewSpmmS8Rows& rows, int64_t group) {
  return rows.starts[group] + group * rows.blocks * rows.kernel->rows * 16;
}

int64_t FirstGroup(const PackedViewSpmmS8Rows& rows, int32_t task, int32_t tasks) {
  const int64_t share = CostBefore(rows, rows.groups) / tasks * task;
  int64_t low = 0, high = rows.groups;
  if (task == tasks) return high;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (CostBefore(rows, middle) < share)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

// The columns of one task: quantises x, multiplies, finishes.
class Worker {
 public:
  Worker(const Job& job, Range groups)
      : job_(job),
        args_(job.args),
        weight_(job.weight),
        rows_(job.rows),
        input_{job.args, job.weight.k, job.weight.input_scale, job.kernels},
        groups_(groups),
        begin_(groups.begin * job.rows.kernel->rows),
        columns_(std::min(groups.end * job.rows.kernel->rows, job.weight.n) - begin_),
        padded_(groups.count() * job.rows.kernel->rows),
        k_pad_(job.rows.blocks * 64) {}

  size_t ScratchBytes() const {
    const size_t m = static_cast<size_t>(args_.m), columns = static_cast<size_t>(padded_);
    return Scratch::Padded<uint8_t>(m * static_cast<size_t>(k_pad_)) + Scratch::Padded<float>(m) +
           Scratch::Padded<int32_t>(m) + Scratch::Padded<int32_t>(m * columns) + 2 * Scratch::Padded<float>(columns) +
           Scratch::Padded<float>(static_cast<size_t>(weight_.k));
  }

  void Run(Scratch& scratch) {
    const size_t m = static_cast<size_t>(args_.m), columns = static_cast<size_t>(padded_);
    uint8_t* q = scratch.Take<uint8_t>(m * static_cast<size_t>(k_pad_));
    float* row_scale = scratch.Take<float>(m);
    int32_t* row_zero = scratch.Take<int32_t>(m);
    int32_t* acc = scratch.Take<int32_t>(m * columns);
    out_ = scratch.Take<float>(columns);
    residual_ = scratch.Take<float>(columns);
    input_.Quantize({0, args_.m}, {q, k_pad_, k_pad_, row_scale, row_zero},
                    scratch.Take<float>(static_cast<size_t>(weight_.k)));
    SpmmS8RowsArgs g{};
    g.m = static_cast<int32_t>(args_.m);
    g.groups = static_cast<int32_t>(groups_.count());
    g.blocks = static_cast<int32_t>(rows_.blocks);
    g.a = q;
    g.lda = k_pad_;
    g.masks = rows_.masks + groups_.begin * rows_.blocks * rows_.kernel->rows;
    g.values = rows_.values;
    g.starts = rows_.starts + groups_.begin;
    g.acc = acc;
    g.ld_acc = padded_;
    rows_.kernel->multiply(g);
    for (int64_t i = 0; i < args_.m; ++i) FinishRow(i, acc + i * padded_, row_scale[i], row_zero[i]);
  }

 private:
  bool narrow() const { return args_.dtype != DType::kF32; }
  size_t At(int64_t row, int64_t stride) const {
    return static_cast<size_t>(row * stride + begin_) * ElementBytes(args_.dtype);
  }

  // The epilogue of LinearS8, in its order.
  void FinishRow(int64_t i, const int32_t* acc, float row_scale, int32_t row_zero) const {
    char* y = static_cast<char*>(args_.y) + At(i, args_.ldy);
    float* c = narrow() ? out_ : reinterpret_cast<float*>(y);
    const float* residual = nullptr;
    if (args_.residual != nullptr) {
      const char* source = static_cast<const char*>(args_.residual) + At(i, args_.ldr);
      if (narrow()) job_.kernels.convert->to_f32(args_.dtype, columns_, source, residual_);
      residual = narrow() ? residual_ : reinterpret_cast<const float*>(source);
    }
    const float* scale = weight_.scale + begin_;
    const int32_t* col_sum = weight_.col_sum + begin_;
    for (int64_t j = 0; j < columns_; ++j) {
      const float t = static_cast<float>(acc[j] - row_zero * col_sum[j]) * (row_scale * scale[j]);
      const float v = t + (args_.bias == nullptr ? 0.0f : args_.bias[begin_ + j]);
      c[j] = residual == nullptr ? v : v + residual[j];
    }
    if (args_.activation != Activation::kNone) job_.kernels.activation->apply(args_.activation, columns_, c);
    if (narrow()) job_.kernels.convert->from_f32(args_.dtype, columns_, c, y);
  }

  const Job& job_;
  const LinearS8Args& args_;
  const PackedViewSpmmS8& weight_;
  const PackedViewSpmmS8Rows& rows_;
  const InputRows input_;
  const Range groups_;
  const int64_t begin_, columns_, padded_, k_pad_;
  float *out_ = nullptr, *residual_ = nullptr;  // [padded_], 16-bit only
};

void RunTask(void* context, int32_t task) {
  Job& job = *static_cast<Job*>(context);
  const Range groups = {FirstGroup(job.rows, task, job.tasks), FirstGroup(job.rows, task + 1, job.tasks)};
  if (groups.count() <= 0) return;
  Worker worker(job, groups);
  Scratch scratch(worker.ScratchBytes());
  if (scratch.ok())
    worker.Run(scratch);
  else
    job.out_of_memory = true;
}

}  // namespace

void RunSpmmS8Rows(const LinearS8Args& args, const PackedViewSpmmS8& weight, const PackedViewSpmmS8Rows& rows,
                   const Selection& kernels, const Executor& executor) {
  Job job{args, weight, rows, kernels};
  if (executor.threads > 1 && weight.n * weight.k >= kSerialWeights)
    job.tasks = static_cast<int32_t>(std::min<int64_t>(executor.threads, rows.groups));
  if (job.tasks == 1)
    RunTask(&job, 0);
  else
    executor.run(job.tasks, RunTask, &job);
  if (job.out_of_memory) throw Error("spmm_s8: out of memory for the quantised rows");
}

}  // namespace tersor

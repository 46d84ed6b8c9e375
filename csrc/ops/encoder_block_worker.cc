#include "ops/encoder_block_worker.h"

#include <algorithm>
#include <chrono>

#include "ops/input_rows.h"
#include "ops/linear_s8_worker.h"
#include "ops/lowrank_s8_worker.h"
#include "ops/spmm_s8_worker.h"

namespace tersor {
namespace {

constexpr float kLog2E = 0x1.715476p0f;
constexpr int64_t kStripBytes = int64_t{704} << 10;  // the floats of a strip of rows stay in L2 beside some weights

// An odd number of cache lines: rows of a tile never fall into the same few cache sets.
constexpr int64_t OddLines(int64_t floats) { return ((floats + 15) / 16 | 1) * 16; }

// Whole tiles of the product's kernel.
int64_t StripRows(const EncoderBlockJob& job) {
  const EncoderBlockConfig& c = job.block.config;
  const int64_t width = job.block.width(), tile = job.kernels.gemm_s8->mr;
  const int64_t row_bytes = 4 * (std::max(3 * width, c.ffn) + 3 * c.hidden + width + 16);
  return std::clamp<int64_t>(kStripBytes / row_bytes / tile, 1, 8) * tile;
}

}  // namespace

// Adds the time of a scope to a part.
class EncoderBlockWorker::Timer {
 public:
  Timer(double* seconds, int part) : to_(seconds == nullptr ? nullptr : seconds + part) {
    if (to_ != nullptr) begin_ = Clock::now();
  }
  ~Timer() {
    if (to_ != nullptr) *to_ += std::chrono::duration<double>(Clock::now() - begin_).count();
  }
  Timer(const Timer&) = delete;
  Timer& operator=(const Timer&) = delete;

 private:
  using Clock = std::chrono::steady_clock;
  double* const to_;
  Clock::time_point begin_;
};

EncoderBlockWorker::EncoderBlockWorker(const EncoderBlockJob& job, bool timed)
    : job_(job),
      args_(job.args),
      block_(job.block),
      kernels_(job.kernels),
      hidden_(job.block.config.hidden),
      width_(job.block.width()),
      ffn_(job.block.config.ffn),
      strip_(StripRows(job)),
      ld_(OddLines(hidden_)),
      ld_wide_(OddLines(std::max(3 * width_, ffn_))),
      ld_context_(OddLines(width_ + 16)),
      attention_(job, strip_),
      seconds_(timed ? job.args.seconds : nullptr) {
  kernels_.activation = kernels_.activation_near;
}

size_t EncoderBlockWorker::ScratchBytes() const {
  const size_t rows = static_cast<size_t>(strip_), hidden = static_cast<size_t>(ld_);
  return attention_.ScratchBytes() + 3 * Scratch::Padded<float>(rows * hidden) +
         Scratch::Padded<float>(rows * static_cast<size_t>(ld_context_)) +
         Scratch::Padded<float>(rows * static_cast<size_t>(ld_wide_));
}

void EncoderBlockWorker::Take(Scratch& scratch) {
  const size_t rows = static_cast<size_t>(strip_), hidden = static_cast<size_t>(ld_);
  attention_.Take(scratch);
  input_ = scratch.Take<float>(rows * hidden);
  normed_ = scratch.Take<float>(rows * hidden);
  attended_ = scratch.Take<float>(rows * hidden);
  context_ = scratch.Take<float>(rows * static_cast<size_t>(ld_context_));
  wide_ = scratch.Take<float>(rows * static_cast<size_t>(ld_wide_));
}

// The rows of x as floats: in place where they are floats and neighbours.
EncoderBlockWorker::Rows EncoderBlockWorker::Input(Range rows) {
  const Timer timer(seconds_, kPartRows);
  const size_t bytes = ElementBytes(args_.dtype);
  const auto row = [&](int64_t token) {
    return static_cast<const char*>(args_.x) + static_cast<size_t>(job_.position[token] * args_.ldx) * bytes;
  };
  if (args_.dtype == DType::kF32 && job_.position[rows.end - 1] - job_.position[rows.begin] == rows.count() - 1)
    return {reinterpret_cast<const float*>(row(rows.begin)), args_.ldx};
  for (int64_t i = 0; i < rows.count(); ++i) {
    const char* from = row(rows.begin + i);
    float* to = input_ + i * ld_;
    if (args_.dtype == DType::kF32)
      std::copy_n(reinterpret_cast<const float*>(from), hidden_, to);
    else
      job_.kernels.convert->to_f32(args_.dtype, hidden_, from, to);
  }
  return {input_, ld_};
}

void EncoderBlockWorker::Multiply(int product, int64_t rows, Rows x, Rows residual, Activation activation, float* y) {
  const Timer timer(seconds_, product);
  static const Executor& serial = SerialExecutor();
  LinearS8Args g{};
  g.m = rows;
  g.x = x.data;
  g.ldx = x.ld;
  g.packed = block_.weight[product];
  g.packed_bytes = block_.weight_bytes[product];
  g.bias = block_.bias[product];
  g.residual = residual.data;
  g.ldr = residual.ld;
  g.activation = activation;
  g.y = y;
  g.ldy = product == kPartQkv || product == kPartFfnIn ? ld_wide_ : ld_;
  constexpr decltype(&LinearS8With) kRun[kEncoderWeightKinds] = {LinearS8With, SpmmS8With, LowRankS8With};
  kRun[static_cast<int>(block_.kind[product])](kernels_, g, serial);
}

void EncoderBlockWorker::Normalize(int norm, int64_t rows, Rows x, float* y) {
  const Timer timer(seconds_, kPartNorm);
  for (int64_t i = 0; i < rows; ++i)
    job_.kernels.norm->layer_norm(hidden_, x.data + i * x.ld, block_.gamma[norm], block_.beta[norm],
                                  block_.config.eps[norm], y + i * ld_);
}

void EncoderBlockWorker::QuantizeQkv(Range rows) {
  const Timer timer(seconds_, kPartInt16);
  const AttentionKernel& kernel = *job_.kernels.attention;
  const int64_t origin = job_.rows().begin;
  const float factor = block_.config.scale * kLog2E;
  for (int64_t i = 0; i < rows.count(); ++i) {
    const int64_t token = rows.begin + i;
    const float* from = wide_ + i * ld_wide_;
    int16_t* to = job_.QkvOf(token);
    job_.q_scale[token - origin] = kernel.quantize_row(width_, from, job_.qk_limit(), to) * factor;
    job_.kv_scale[0][token - origin] = kernel.quantize_row(width_, from + width_, job_.qk_limit(), to + width_);
    job_.kv_scale[1][token - origin] =
        kernel.quantize_row(width_, from + 2 * width_, kAttentionValueLimit, to + 2 * width_);
    std::fill(to + 3 * width_, to + job_.ld_qkv, int16_t{0});
  }
}

void EncoderBlockWorker::ProjectStrip(Range rows) {
  Rows x = Input(rows);
  if (block_.config.norm_first) {
    Normalize(0, rows.count(), x, normed_);
    x = {normed_, ld_};
  }
  Multiply(kPartQkv, rows.count(), x, {nullptr, 0}, Activation::kNone, wide_);
  QuantizeQkv(rows);
}

void EncoderBlockWorker::Attend(Range rows) {
  const Timer timer(seconds_, kPartAttention);
  for (int64_t begin = rows.begin; begin < rows.end;) {
    while (job_.start[sequence_ + 1] <= begin) ++sequence_;
    const int64_t end = std::min(rows.end, job_.start[sequence_ + 1]);
    attention_.Run(sequence_, {begin, end}, context_ + (begin - rows.begin) * ld_context_, ld_context_);
    begin = end;
  }
}

// The rows of x and y come into L2 while attention computes. x by loads: of so many prefetches most would be dropped.
void EncoderBlockWorker::Fetch(Range rows) {
  const size_t bytes = ElementBytes(args_.dtype), row_bytes = static_cast<size_t>(hidden_) * bytes;
  for (int64_t token = rows.begin; token < rows.end; ++token) {
    const int64_t at = job_.position[token];
    const volatile char* x = static_cast<const char*>(args_.x) + static_cast<size_t>(at * args_.ldx) * bytes;
    const char* y = static_cast<const char*>(args_.y) + static_cast<size_t>(at * args_.ldy) * bytes;
    for (size_t line = 0; line < row_bytes; line += kCacheLine) {
      static_cast<void>(x[line]);
      __builtin_prefetch(y + line, 1, 2);
    }
  }
}

void EncoderBlockWorker::FinishStrip(Range rows) {
  const int64_t m = rows.count();
  const bool norm_first = block_.config.norm_first;
  Fetch(rows);
  Attend(rows);
  const Rows attended = {attended_, ld_};
  Multiply(kPartOut, m, {context_, ld_context_}, Input(rows), Activation::kNone, attended_);
  float* ffn_input = norm_first ? normed_ : attended_;
  Normalize(norm_first ? 1 : 0, m, attended, ffn_input);
  Multiply(kPartFfnIn, m, {ffn_input, ld_}, {nullptr, 0}, block_.config.activation, wide_);
  Multiply(kPartFfnOut, m, {wide_, ld_wide_}, attended, Activation::kNone, normed_);
  if (!norm_first) Normalize(1, m, {normed_, ld_}, normed_);
  WriteOutput(rows, normed_);
}

void EncoderBlockWorker::WriteOutput(Range rows, const float* y) {
  const Timer timer(seconds_, kPartRows);
  const size_t bytes = ElementBytes(args_.dtype);
  for (int64_t i = 0; i < rows.count(); ++i, y += ld_) {
    char* to = static_cast<char*>(args_.y) + static_cast<size_t>(job_.position[rows.begin + i] * args_.ldy) * bytes;
    if (args_.dtype == DType::kF32)
      std::copy_n(y, hidden_, reinterpret_cast<float*>(to));
    else
      job_.kernels.convert->from_f32(args_.dtype, hidden_, y, to);
  }
}

void EncoderBlockWorker::ProjectQkv(Range rows) {
  const EvenSplit strips(rows.count(), (rows.count() + strip_ - 1) / strip_);
  for (int64_t i = 0, at = 0; at < rows.count(); at = strips[i++].end)
    ProjectStrip({rows.begin + strips[i].begin, rows.begin + strips[i].end});
}

void EncoderBlockWorker::PackPanels(Range units) {
  const Timer timer(seconds_, kPartAttention);
  const int64_t heads = block_.config.heads;
  int64_t unit = 0;
  for (int64_t s = job_.sequences.begin; s < job_.sequences.end && unit < units.end; ++s) {
    if (job_.panel_at[s] < 0) continue;
    const int64_t end = std::min(unit + job_.blocks_of(s) * heads, units.end);
    for (int64_t u = std::max(unit, units.begin); u < end; ++u)
      EncoderAttention::PackShared(job_, s, (u - unit) / heads, (u - unit) % heads);
    unit += job_.blocks_of(s) * heads;
  }
}

void EncoderBlockWorker::Finish(Range rows) {
  sequence_ = job_.sequences.begin;
  const EvenSplit strips(rows.count(), (rows.count() + strip_ - 1) / strip_);
  for (int64_t i = 0, at = 0; at < rows.count(); at = strips[i++].end)
    FinishStrip({rows.begin + strips[i].begin, rows.begin + strips[i].end});
}

}  // namespace tersor

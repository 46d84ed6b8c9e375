// Front end: validate, split among threads, quantise a block of rows, call the tiles, finish their output.
#include "tersor/linear_s8.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <string>

#include "core/registry.h"
#include "core/scratch.h"
#include "ops/packed_s8.h"
#include "ops/quantize_rows.h"

namespace tersor {
namespace {

// The quantised rows of a block stay in L2 while every panel passes by.
constexpr int64_t kBlockBytes = int64_t{192} << 10;
// Below this many multiply-adds a call takes less than about 20 us and waking a thread costs more than it saves.
constexpr int64_t kSerialMacs = int64_t{5} << 19;

struct Range {
  int64_t begin, end;
};

Range Part(int64_t count, int64_t parts, int64_t i) { return {count * i / parts, count * (i + 1) / parts}; }

size_t ElementBytes(DType dtype) { return dtype == DType::kF32 ? 4 : 2; }

struct Job {
  const LinearS8Args& args;
  const PackedViewS8& weight;
  const Selection& kernels;
  int32_t tasks = 1;
  bool by_rows = false;
  std::atomic<bool> out_of_memory{false};
};

// What one thread works on and where it keeps its intermediate results.
struct Worker {
  const Job& job;
  const LinearS8Args& args;
  const PackedViewS8& weight;
  const GemmS8Kernel& kernel;
  int64_t k_pad, lda, tiles, blocks, block_rows, out_rows, out_cols;
  uint8_t* q = nullptr;        // [block_rows][lda]
  float* row_scale = nullptr;  // [block_rows]
  int32_t* row_zero = nullptr;
  float* bias = nullptr;        // [columns of this worker], padded; null when the caller's bias can be read in place
  float* zeros = nullptr;       // [columns of this worker], for the chunks after the first
  float* row_f32 = nullptr;     // [k], 16-bit or smoothed inputs only
  float* out = nullptr;         // [out_rows][out_cols], 16-bit outputs only
  float* residual = nullptr;    // the same, when there is one
  const char* ahead = nullptr;  // what the next tiles will read of the weight
  int64_t ahead_bytes = 0;

  Worker(const Job& j, int64_t rows, int64_t columns)
      : job(j), args(j.args), weight(j.weight), kernel(*j.weight.kernel) {
    const int64_t kr = kernel.kr;
    k_pad = (weight.k + kr - 1) / kr * kr;
    // An odd number of cache lines: rows of a tile never fall into the same few cache sets.
    lda = ((k_pad + 63) / 64 | 1) * 64;
    // Rows spread evenly over tiles, and tiles over blocks: none is left with one row.
    tiles = (rows + kernel.mr - 1) / kernel.mr;
    const int64_t tiles_in_block = std::max<int64_t>(kBlockBytes / lda / kernel.mr, 1);
    blocks = (tiles + tiles_in_block - 1) / tiles_in_block;
    block_rows = std::min((tiles + blocks - 1) / blocks * kernel.mr, rows);
    const bool few = rows <= kernel.row_limit;
    out_rows = few ? rows : kernel.mr;
    out_cols = few ? columns : kernel.nr;
  }

  bool narrow() const { return args.dtype != DType::kF32; }
  bool rewrites_rows() const { return narrow() || weight.input_scale != nullptr; }
  bool pads_bias(int64_t columns) const { return args.bias == nullptr || columns % kernel.nr != 0; }

  size_t ScratchBytes(int64_t columns) const {
    const size_t rows = static_cast<size_t>(block_rows), padded = Padded(columns);
    const size_t outs = static_cast<size_t>(out_rows * out_cols);
    return Scratch::Padded<uint8_t>(rows * static_cast<size_t>(lda)) + Scratch::Padded<float>(rows) +
           Scratch::Padded<int32_t>(rows) + (pads_bias(columns) ? Scratch::Padded<float>(padded) : 0) +
           (weight.layout.chunks > 1 ? Scratch::Padded<float>(padded) : 0) +
           (rewrites_rows() ? Scratch::Padded<float>(static_cast<size_t>(weight.k)) : 0) +
           (narrow() ? 2 * Scratch::Padded<float>(outs) : 0);
  }

  size_t Padded(int64_t columns) const {
    return static_cast<size_t>((columns + kernel.nr - 1) / kernel.nr * kernel.nr);
  }

  void Take(Scratch& scratch, int64_t column_begin, int64_t columns) {
    const size_t rows = static_cast<size_t>(block_rows), padded = Padded(columns);
    q = scratch.Take<uint8_t>(rows * static_cast<size_t>(lda));
    row_scale = scratch.Take<float>(rows);
    row_zero = scratch.Take<int32_t>(rows);
    if (pads_bias(columns)) {
      bias = scratch.Take<float>(padded);
      std::fill_n(bias, padded, 0.0f);
      if (args.bias != nullptr) std::copy_n(args.bias + column_begin, columns, bias);
    }
    if (weight.layout.chunks > 1) {
      zeros = scratch.Take<float>(padded);
      std::fill_n(zeros, padded, 0.0f);
    }
    if (rewrites_rows()) row_f32 = scratch.Take<float>(static_cast<size_t>(weight.k));
    if (narrow()) {
      const size_t outs = static_cast<size_t>(out_rows * out_cols);
      out = scratch.Take<float>(outs);
      residual = scratch.Take<float>(outs);
    }
  }

  const void* Source(int64_t row) const {
    return static_cast<const char*>(args.x) + static_cast<size_t>(row * args.ldx) * ElementBytes(args.dtype);
  }

  RowParams ParamsOf(const float* x) const {
    float range[2];
    job.kernels.quantize->row_range(weight.k, x, range);
    const RowParams dynamic = ChooseRowParams(range);
    if (args.x_scale > 0.0f && !std::isnan(dynamic.scale))
      return {args.x_scale, 1.0f / args.x_scale, args.x_zero_point};
    return dynamic;
  }

  void QuantizeInto(int64_t i, const float* x, const RowParams& params) {
    QuantizeRow(*job.kernels.quantize, weight.k, k_pad, x, params, q + i * lda);
    row_scale[i] = params.scale;
    row_zero[i] = params.zero_point;
  }

  void Quantize(int64_t row_begin, int64_t rows) {
    if (rewrites_rows()) {
      const ConvertKernel& convert = *job.kernels.convert;
      for (int64_t i = 0; i < rows; ++i) {
        const float* x = static_cast<const float*>(Source(row_begin + i));
        if (narrow()) {
          convert.to_f32(args.dtype, weight.k, x, row_f32);
          x = row_f32;
        }
        if (weight.input_scale != nullptr) convert.multiply(weight.k, x, weight.input_scale, row_f32);
        QuantizeInto(i, row_f32, ParamsOf(row_f32));
      }
      return;
    }
    // The ranges of several rows first: the divisions of one row then overlap with the reading of the next.
    constexpr int64_t kGroup = 4;
    for (int64_t begin = 0; begin < rows; begin += kGroup) {
      RowParams params[kGroup];
      const int64_t live = std::min(kGroup, rows - begin);
      const auto row = [&](int64_t i) { return static_cast<const float*>(Source(row_begin + begin + i)); };
      for (int64_t i = 0; i < live; ++i) params[i] = ParamsOf(row(i));
      for (int64_t i = 0; i < live; ++i) QuantizeInto(begin + i, row(i), params[i]);
    }
  }

  // Rows [row, row + rows) of the block against columns [column, column + columns); column_base is this
  // worker's first column, row_base the block's first row.
  void Compute(int64_t row_base, int64_t row, int64_t rows, int64_t column_base, int64_t column, int64_t columns) {
    const int64_t y_row = row_base + row;
    char* y = static_cast<char*>(args.y) + static_cast<size_t>(y_row * args.ldy + column) * ElementBytes(args.dtype);
    const char* res = static_cast<const char*>(args.residual);
    if (res != nullptr) res += static_cast<size_t>(y_row * args.ldr + column) * ElementBytes(args.dtype);
    float* c = narrow() ? out : reinterpret_cast<float*>(y);
    const int64_t ldc = narrow() ? out_cols : args.ldy;

    GemmS8Args g{};
    g.m = static_cast<int32_t>(rows);
    g.n = static_cast<int32_t>(columns);
    g.lda = lda;
    g.c = c;
    g.ldc = ldc;
    g.ahead = ahead;
    g.ahead_bytes = ahead_bytes;
    g.row_scale = row_scale + row;
    g.row_zero = row_zero + row;
    g.col_scale = weight.scale + column;
    g.bias = bias != nullptr ? bias + (column - column_base) : args.bias + column;
    g.residual = reinterpret_cast<const float*>(res);
    g.ldr = args.ldr;
    if (res != nullptr && narrow()) {
      for (int64_t i = 0; i < rows; ++i)
        job.kernels.convert->to_f32(args.dtype, columns, res + static_cast<size_t>(i * args.ldr) * 2,
                                    residual + i * out_cols);
      g.residual = residual;
      g.ldr = out_cols;
    }
    for (int64_t chunk = 0; chunk < weight.layout.chunks; ++chunk) {
      if (chunk > 0) {  // y = chunk + what is already there
        g.bias = zeros + (column - column_base);
        g.residual = c;
        g.ldr = ldc;
      }
      g.k = weight.ChunkDepth(chunk);
      g.a = q + row * lda + chunk * kMaxDepthS8;
      g.panel = weight.Panel(chunk, column / kernel.nr);
      g.col_sum = weight.col_sum + chunk * weight.layout.n_pad + column;
      (rows <= kernel.row_limit ? kernel.rows : kernel.tile)(g);
    }
    for (int64_t i = 0; i < rows; ++i) {
      if (args.activation != Activation::kNone) job.kernels.activation->apply(args.activation, columns, c + i * ldc);
      if (narrow())
        job.kernels.convert->from_f32(args.dtype, columns, c + i * ldc, y + static_cast<size_t>(i * args.ldy) * 2);
    }
  }

  void Run(Range rows, Range columns) {
    const int64_t count = rows.end - rows.begin;
    if (count <= kernel.row_limit) {
      Quantize(rows.begin, count);
      Compute(rows.begin, 0, count, columns.begin, columns.begin, columns.end - columns.begin);
      return;
    }
    for (int64_t block = 0; block < blocks; ++block) RunBlock(rows, columns, Part(tiles, blocks, block));
  }

  // Each panel meets every row of the block while it is in L1.
  void RunBlock(Range rows, Range columns, Range block) {
    const int64_t count = rows.end - rows.begin, in_block = block.end - block.begin;
    const int64_t first = count * block.begin / tiles, base = rows.begin + first;
    Quantize(base, count * block.end / tiles - first);
    const int64_t panel_bytes = static_cast<int64_t>(kernel.panel_bytes(weight.ChunkDepth(0)));
    for (int64_t column = columns.begin; column < columns.end; column += kernel.nr) {
      const int64_t live = std::min<int64_t>(kernel.nr, columns.end - column);
      const bool last = column + kernel.nr >= columns.end;
      for (int64_t t = 0; t < in_block; ++t) {
        const Range tile = Part(count, tiles, block.begin + t);
        if (!last) {
          const Range share = Part(panel_bytes, in_block, t);
          ahead = weight.Panel(0, column / kernel.nr + 1) + share.begin;
          ahead_bytes = share.end - share.begin;
        } else {
          ahead_bytes = 0;
        }
        Compute(base, tile.begin - first, tile.end - tile.begin, columns.begin, column, live);
      }
    }
  }
};

void RunTask(void* context, int32_t task) {
  Job& job = *static_cast<Job*>(context);
  const int64_t nr = job.weight.kernel->nr, n = job.weight.n;
  Range rows{0, job.args.m}, columns{0, n};
  if (job.by_rows) {
    rows = Part(job.args.m, job.tasks, task);
  } else {
    const Range panels = Part(job.weight.layout.n_pad / nr, job.tasks, task);
    columns = {panels.begin * nr, std::min(panels.end * nr, n)};
  }
  if (rows.begin >= rows.end || columns.begin >= columns.end) return;
  Worker worker(job, rows.end - rows.begin, columns.end - columns.begin);
  Scratch scratch(worker.ScratchBytes(columns.end - columns.begin));
  if (!scratch.ok()) {
    job.out_of_memory = true;
    return;
  }
  worker.Take(scratch, columns.begin, columns.end - columns.begin);
  worker.Run(rows, columns);
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
  Job job{args, weight, Selected()};
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

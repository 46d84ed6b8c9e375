// Front end: validate, find the real tokens, split them among threads.
#include "tersor/encoder_block.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <string>

#include "core/scratch.h"
#include "ops/encoder_block_worker.h"
#include "ops/input_rows.h"
#include "ops/packed_s8.h"

namespace tersor {
namespace {

// Q, K and V of a group of sequences, unless one sequence alone is longer; below kScratchKeepBytes.
constexpr int64_t kGroupBytes = int64_t{7} << 19;

[[noreturn]] void Fail(const std::string& what) { throw Error("encoder_block: " + what); }

void CheckArgs(const EncoderBlockArgs& args, const PackedViewEncoderBlock& block) {
  const int32_t dtype = static_cast<int32_t>(args.dtype);
  if (dtype < 0 || dtype > static_cast<int32_t>(DType::kF16)) Fail("unknown dtype code " + std::to_string(dtype));
  constexpr int64_t kMost = int64_t{1} << 30;
  if (args.batch < 0 || args.tokens < 0 || args.batch > kMost || args.tokens > kMost ||
      args.batch * args.tokens > kMost)
    Fail("batch=" + std::to_string(args.batch) + ", tokens=" + std::to_string(args.tokens) +
         "; at most 2^30 tokens in all");
  if (args.batch * args.tokens > 0 && (args.x == nullptr || args.y == nullptr)) Fail("x and y must not be null");
  if (args.ldx < block.config.hidden || args.ldy < block.config.hidden) Fail("row strides shorter than a row");
}

// position and start of the job; returns the number of real tokens.
int64_t FindTokens(const EncoderBlockArgs& args, int32_t* position, int64_t* start) {
  int64_t count = 0;
  for (int64_t sequence = 0; sequence < args.batch; ++sequence) {
    start[sequence] = count;
    const int64_t begin = sequence * args.tokens;
    for (int64_t i = begin; i < begin + args.tokens; ++i) {
      position[count] = static_cast<int32_t>(i);
      count += args.keep == nullptr || args.keep[i] != 0;
    }
  }
  start[args.batch] = count;
  return count;
}

void ClearPadding(const EncoderBlockJob& job, int32_t task) {
  const EncoderBlockArgs& args = job.args;
  if (args.keep == nullptr) return;
  const size_t bytes = ElementBytes(args.dtype), row_bytes = static_cast<size_t>(job.block.config.hidden) * bytes;
  const Range share = EvenSplit(job.sequences.count() * args.tokens, job.tasks)[task];
  for (int64_t i = share.begin; i < share.end; ++i) {
    const int64_t at = job.sequences.begin * args.tokens + i;
    if (args.keep[at] == 0)
      std::memset(static_cast<char*>(args.y) + static_cast<size_t>(at * args.ldy) * bytes, 0, row_bytes);
  }
}

// The first row of a task in the second stage: a row costs its products, and attention to every token of its sequence.
int64_t FirstRow(const EncoderBlockJob& job, int32_t task) {
  const EncoderBlockConfig& c = job.block.config;
  const int64_t width = job.block.width(), keys = width / 8 + 1,
                products = (width * c.hidden + 2 * c.ffn * c.hidden) / 64;
  const auto cost = [&](int64_t sequence) { return products + keys * (job.start[sequence + 1] - job.start[sequence]); };
  int64_t total = 0;
  for (int64_t s = job.sequences.begin; s < job.sequences.end; ++s)
    total += cost(s) * (job.start[s + 1] - job.start[s]);
  int64_t left = total / job.tasks * task;
  if (task == job.tasks) return job.rows().end;
  for (int64_t s = job.sequences.begin; s < job.sequences.end; ++s) {
    const int64_t rows = job.start[s + 1] - job.start[s];
    if (left < cost(s) * rows) return job.start[s] + left / cost(s);
    left -= cost(s) * rows;
  }
  return job.rows().end;
}

enum class Stage { kQkv, kRest };

// Keys and values of a sequence that more than one strip of rows will read are packed once, before all of them.
constexpr int64_t kSharedFrom = 65;

// Decides which sequences of the group have panels; returns how many heads and blocks they have.
int64_t PlacePanels(EncoderBlockJob& job) {
  const int64_t heads = job.block.config.heads, key = 2 * heads * job.depth16();  // values of a key and its value
  int64_t at = 0, units = 0;
  for (int64_t s = job.sequences.begin; s < job.sequences.end; ++s) {
    const int64_t tokens = job.start[s + 1] - job.start[s];
    job.panel_at[s] = tokens < kSharedFrom ? -1 : at;
    if (tokens < kSharedFrom) continue;
    at += RoundUp(tokens, 16) * key;
    units += job.blocks_of(s) * heads;
  }
  return units;
}

size_t PanelBytes(const EncoderBlockJob& job, size_t rows) {
  if (job.args.tokens < kSharedFrom) return 0;
  const size_t key = static_cast<size_t>(2 * job.block.config.heads * job.depth16());
  return Scratch::Padded<int16_t>((rows + 16 * (rows / kSharedFrom)) * key);
}

void PackTask(void* context, int32_t task) {
  const EncoderBlockJob& job = *static_cast<EncoderBlockJob*>(context);
  EncoderBlockWorker(job, task == 0).PackPanels(EvenSplit(job.panel_units, job.tasks)[task]);
}

template <Stage stage>
void RunTask(void* context, int32_t task) {
  EncoderBlockJob& job = *static_cast<EncoderBlockJob*>(context);
  const Range all = job.rows();
  Range rows = EvenSplit(all.count(), job.tasks)[task];
  rows = {all.begin + rows.begin, all.begin + rows.end};
  if (stage == Stage::kRest) {
    ClearPadding(job, task);
    rows = {FirstRow(job, task), FirstRow(job, task + 1)};
  }
  if (rows.count() <= 0) return;
  try {
    EncoderBlockWorker worker(job, task == 0);
    Scratch scratch(worker.ScratchBytes(), Arena::kBlockTask);
    if (!scratch.ok()) throw std::bad_alloc();
    worker.Take(scratch);
    if (stage == Stage::kQkv)
      worker.ProjectQkv(rows);
    else
      worker.Finish(rows);
  } catch (...) {  // memory for a product; all else was checked
    job.out_of_memory = true;
  }
}

void RunGroup(EncoderBlockJob& job, const Executor& executor) {
  const EncoderBlockConfig& c = job.block.config;
  const int64_t macs = job.rows().count() * c.hidden * (4 * job.block.width() + 2 * c.ffn);
  job.tasks = macs < kSerialMacsS8 ? 1 : executor.threads;
  const Executor& run = job.tasks == 1 ? SerialExecutor() : executor;
  job.panel_units = PlacePanels(job);
  run.run(job.tasks, RunTask<Stage::kQkv>, &job);
  if (job.panel_units > 0 && !job.out_of_memory) run.run(job.tasks, PackTask, &job);
  if (!job.out_of_memory) run.run(job.tasks, RunTask<Stage::kRest>, &job);
  if (job.out_of_memory) Fail("out of memory");
}

}  // namespace

void EncoderBlock(const EncoderBlockArgs& args, const Executor& executor) {
  const PackedViewEncoderBlock block = ViewPackedEncoderBlock(args.packed, args.packed_bytes);
  CheckArgs(args, block);
  const int64_t positions = args.batch * args.tokens;
  if (positions == 0) return;
  const int64_t ld_qkv = RoundUp(3 * block.width() + 48, 32);
  const int64_t group = std::max(kGroupBytes / (2 * ld_qkv), args.tokens);
  const size_t rows = static_cast<size_t>(std::min(group, positions)), batch = static_cast<size_t>(args.batch);
  const size_t qkv = rows * static_cast<size_t>(ld_qkv);
  Scratch scratch(Scratch::Padded<int32_t>(static_cast<size_t>(positions) + 1) +
                      2 * Scratch::Padded<int64_t>(batch + 1) + Scratch::Padded<int16_t>(qkv) +
                      3 * Scratch::Padded<float>(rows),
                  Arena::kBlockCall);
  if (!scratch.ok()) Fail("out of memory");
  int32_t* position = scratch.Take<int32_t>(static_cast<size_t>(positions) + 1);
  int64_t* start = scratch.Take<int64_t>(batch + 1);
  FindTokens(args, position, start);

  EncoderBlockJob job{args,   block,   Selected(), position, start,   {0, 0}, nullptr,
                      ld_qkv, nullptr, {},         nullptr,  nullptr, 0,      1};
  Scratch panels(PanelBytes(job, rows), Arena::kBlockPanels);
  if (!panels.ok() && args.tokens >= kSharedFrom) Fail("out of memory");
  job.panels = panels.Take<int16_t>(0);
  job.panel_at = scratch.Take<int64_t>(batch + 1);
  job.qkv = scratch.Take<int16_t>(qkv);
  job.q_scale = scratch.Take<float>(rows);
  for (float*& scale : job.kv_scale) scale = scratch.Take<float>(rows);
  for (int64_t begin = 0; begin < args.batch; begin = job.sequences.end) {
    int64_t end = begin + 1;
    while (end < args.batch && start[end + 1] - start[begin] <= group) ++end;
    job.sequences = {begin, end};
    RunGroup(job, executor);
  }
}

void LayerNorm(int64_t n, const float* x, const float* gamma, const float* beta, float eps, float* y) {
  Selected().norm->layer_norm(n, x, gamma, beta, eps, y);
}

}  // namespace tersor

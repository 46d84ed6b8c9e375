// How a low-rank product is shared among threads: many rows by rows, each thread doing both factors of its own; few
// rows by columns, first of the intermediate, which all threads then read, and then of y.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <string>

#include "core/scratch.h"
#include "ops/range.h"
#include "tersor/executor.h"

namespace tersor {

// What a worker sees of the whole call. A View is a packed low-rank weight.
template <typename View, typename Args, typename Kernels>
struct LowRankJob {
  const Args& args;
  const View& weight;
  const Kernels& kernels;
  int32_t tasks = 1;
  bool by_rows = true;
  float* h = nullptr;  // by columns: the intermediate [m][h_stride] of all rows
  std::atomic<bool> out_of_memory{false};

  // An odd number of cache lines: rows of a tile never fall into the same few cache sets.
  int64_t h_stride() const { return ((weight.down_panels() * weight.kernel->nr + 15) / 16 | 1) * 16; }
};

// The part of a task: rows, and columns of the intermediate and of y; an empty range leaves that factor out.
struct LowRankShare {
  Range rows, down, up;
};

namespace lowrank {

enum class Phase { kBoth, kDown, kUp };

template <typename Worker, Phase kPhase>
void RunTask(void* context, int32_t task) {
  typename Worker::Job& job = *static_cast<typename Worker::Job*>(context);
  const int64_t nr = job.weight.kernel->nr, rank = job.weight.rank, n = job.weight.n;
  LowRankShare share{{0, job.args.m}, {0, 0}, {0, 0}};
  const auto columns = [&](int64_t panels, int64_t extent) {
    const Range part = EvenSplit(panels, job.tasks)[task];
    return Range{std::min(part.begin * nr, extent), std::min(part.end * nr, extent)};
  };
  if constexpr (kPhase == Phase::kBoth) {
    share = {EvenSplit(job.args.m, job.tasks)[task], {0, rank}, {0, n}};
  } else if constexpr (kPhase == Phase::kDown) {
    share.down = columns(job.weight.down_panels(), rank);
  } else {
    share.up = columns(job.weight.up_panels(), n);
  }
  if (share.rows.count() == 0 || share.down.count() + share.up.count() == 0) return;
  Worker worker(job, share);
  Scratch scratch(worker.ScratchBytes());
  if (scratch.ok())
    worker.Run(scratch);
  else
    job.out_of_memory = true;
}

template <typename Worker>
void RunByColumns(typename Worker::Job& job, const Executor& executor) {
  const size_t floats = static_cast<size_t>(job.args.m * job.h_stride());
  job.h = static_cast<float*>(std::aligned_alloc(kCacheLine, Scratch::Padded<float>(floats)));
  if (job.h == nullptr) {
    job.out_of_memory = true;
    return;
  }
  executor.run(job.tasks, RunTask<Worker, Phase::kDown>, &job);
  if (!job.out_of_memory) executor.run(job.tasks, RunTask<Worker, Phase::kUp>, &job);
  std::free(job.h);
}

}  // namespace lowrank

// `macs`: multiply-adds of the call; below serial_macs it stays on the calling thread.
template <typename Worker>
void RunLowRank(const char* op, typename Worker::Job& job, const Executor& executor, int64_t macs,
                int64_t serial_macs) {
  if (executor.threads > 1 && macs >= serial_macs) {
    job.tasks = executor.threads;
    job.by_rows = job.args.m >= 2 * int64_t{job.weight.kernel->mr} * executor.threads;
  }
  if (job.tasks == 1)
    lowrank::RunTask<Worker, lowrank::Phase::kBoth>(&job, 0);
  else if (job.by_rows)
    executor.run(job.tasks, lowrank::RunTask<Worker, lowrank::Phase::kBoth>, &job);
  else
    lowrank::RunByColumns<Worker>(job, executor);
  if (job.out_of_memory) throw Error(std::string(op) + ": out of memory for the intermediate");
}

}  // namespace tersor

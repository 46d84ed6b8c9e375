// Front end: validate, split among threads.
#include "ops/input_rows.h"
#include "ops/lowrank_f32_worker.h"

namespace tersor {
namespace {

// Below this many multiply-adds a call takes less than about 20 us and waking a thread costs more than it saves.
constexpr int64_t kSerialMacs = int64_t{5} << 17;

}  // namespace

void LowRankF32(const LowRankF32Args& args, const Executor& executor) {
  const PackedViewLowRankF32 weight = ViewPackedLowRankF32(args.packed, args.packed_bytes);
  CheckRows("lowrank_f32", args, weight.n);
  if (args.m == 0) return;
  LowRankF32Worker::Job job{args, weight, Selected()};
  RunLowRank<LowRankF32Worker>("lowrank_f32", job, executor, args.m * weight.rank * (weight.k + weight.n), kSerialMacs);
}

}  // namespace tersor

// Front end: validate, split among threads.
#include "ops/lowrank_s8_worker.h"

namespace tersor {

void LowRankS8(const LinearS8Args& args, const Executor& executor) { LowRankS8With(Selected(), args, executor); }

void LowRankS8With(const Selection& kernels, const LinearS8Args& args, const Executor& executor) {
  const PackedViewLowRankS8 weight = ViewPackedLowRankS8(args.packed, args.packed_bytes);
  CheckLinearArgs("lowrank_s8", args, weight.n);
  if (args.m == 0) return;
  LowRankS8Worker::Job job{args, weight, kernels};
  const int64_t dense = weight.has_dense ? weight.n * weight.k : 0;
  const int64_t macs = args.m * (weight.rank * (weight.k + weight.n) + dense);
  RunLowRank<LowRankS8Worker>("lowrank_s8", job, executor, macs, kSerialMacsS8);
}

}  // namespace tersor

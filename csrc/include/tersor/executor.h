// How an op runs its tasks. The caller brings the threads: torch's pool inside torch ops, the library's own
// pool elsewhere, or nothing at all.
#pragma once
#include <cstdint>

#include "tersor/error.h"

namespace tersor {

struct Executor {
  int32_t threads;  // how many tasks may run at once; ops split their work into at most this many
  // Runs fn(context, t) for t in [0, tasks) and returns when all are done. fn never throws.
  void (*run)(int32_t tasks, void (*fn)(void* context, int32_t task), void* context);
};

TERSOR_API const Executor& SerialExecutor();

// The threads of the program around the library, which `_torch_ops.so` sets to torch's pool: SerialExecutor() until
// then. The caller of HostExecutor says that it runs inside that program.
TERSOR_API void SetHostExecutor(Executor (*host)());
TERSOR_API Executor HostExecutor();

// The library's own pool: workers sleep on a condition variable, survive fork (a child starts afresh), and are
// started by the first call that needs them. It has min(SetPoolThreads, affinity, cgroup quota) threads.
// The reference stays valid for the calling thread; its `threads` is brought up to date by each call.
TERSOR_API const Executor& PoolExecutor();
TERSOR_API void SetPoolThreads(int32_t threads);  // 0: as many as UsableCpus(); throws Error when negative
TERSOR_API int32_t PoolThreads();                 // what PoolExecutor().threads would be now

// min(affinity, cgroup quota rounded down), at least 1.
TERSOR_API int32_t UsableCpus();

}  // namespace tersor

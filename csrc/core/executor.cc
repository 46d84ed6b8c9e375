#include "tersor/executor.h"

namespace tersor {
namespace {

void RunSerial(int32_t tasks, void (*fn)(void* context, int32_t task), void* context) {
  for (int32_t task = 0; task < tasks; ++task) fn(context, task);
}

}  // namespace

const Executor& SerialExecutor() {
  static const Executor executor = {1, RunSerial};
  return executor;
}

}  // namespace tersor

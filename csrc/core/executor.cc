#include "tersor/executor.h"

#include <atomic>

namespace tersor {
namespace {

void RunSerial(int32_t tasks, void (*fn)(void* context, int32_t task), void* context) {
  for (int32_t task = 0; task < tasks; ++task) fn(context, task);
}

std::atomic<Executor (*)()> host_executor{nullptr};

}  // namespace

const Executor& SerialExecutor() {
  static const Executor executor = {1, RunSerial};
  return executor;
}

void SetHostExecutor(Executor (*host)()) { host_executor.store(host, std::memory_order_release); }

Executor HostExecutor() {
  Executor (*const host)() = host_executor.load(std::memory_order_acquire);
  return host == nullptr ? SerialExecutor() : host();
}

}  // namespace tersor

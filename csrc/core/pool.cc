// The library's own thread pool. Workers sleep on a condition variable; the caller takes part and could do
// every task alone, so a worker that wakes late, or cannot be started, costs time but never a task.
#include <pthread.h>
#include <signal.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <string>

#include "tersor/executor.h"

// glibc 2.32 and 2.34 moved these two from libpthread to libc under new versions. The old ones keep the library
// loadable on glibc 2.28.
#if defined(__GLIBC__) && defined(__x86_64__)
__asm__(".symver pthread_create, pthread_create@GLIBC_2.2.5");
__asm__(".symver pthread_sigmask, pthread_sigmask@GLIBC_2.2.5");
#elif defined(__GLIBC__) && defined(__aarch64__)
__asm__(".symver pthread_create, pthread_create@GLIBC_2.17");
__asm__(".symver pthread_sigmask, pthread_sigmask@GLIBC_2.17");
#endif

namespace tersor {
namespace {

constexpr int64_t kSpinNanoseconds = 3000;  // at the end of a call, before the caller sleeps

struct Job {
  void (*fn)(void* context, int32_t task);
  void* context;
  int32_t tasks;
  int32_t seats;  // how many workers may still join
  std::atomic<int32_t> next{0};

  void DrainTasks() {
    for (int32_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) fn(context, task);
  }
};

// Never destroyed: workers may sleep in it until the process ends.
struct Pool {
  pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
  pthread_cond_t wake = PTHREAD_COND_INITIALIZER;  // a job has free seats
  pthread_cond_t done = PTHREAD_COND_INITIALIZER;  // the last worker left the job
  // Guarded by mutex:
  Job* job = nullptr;
  bool in_use = false;
  bool atfork_set = false;
  int32_t workers = 0;
  std::atomic<int32_t> at_work{0};  // workers inside the job; changed under mutex
};

Pool pool;
std::atomic<int32_t> requested{0};  // SetPoolThreads
std::atomic<int32_t> granted{0};    // min(requested, UsableCpus()); 0 until the first use

void* RunWorker(void*) {
  pthread_mutex_lock(&pool.mutex);
  for (;;) {
    while (pool.job == nullptr || pool.job->seats == 0) pthread_cond_wait(&pool.wake, &pool.mutex);
    Job* job = pool.job;
    --job->seats;
    pool.at_work.fetch_add(1, std::memory_order_relaxed);
    pthread_mutex_unlock(&pool.mutex);
    job->DrainTasks();
    pthread_mutex_lock(&pool.mutex);
    if (pool.at_work.fetch_sub(1, std::memory_order_relaxed) == 1) pthread_cond_signal(&pool.done);
  }
  return nullptr;
}

// In the child only the forking thread lives: its workers are gone and the mutex may be held by one of them.
void ResetInChild() {
  pthread_mutex_init(&pool.mutex, nullptr);
  pthread_cond_init(&pool.wake, nullptr);
  pthread_cond_init(&pool.done, nullptr);
  pool.job = nullptr;
  pool.in_use = false;
  pool.workers = 0;
  pool.at_work = 0;
  granted = 0;  // the child may be given other CPUs
}

// Called with the mutex held. Stops at the first thread that the system refuses.
void StartWorkers(int32_t wanted) {
  if (pool.workers >= wanted) return;
  if (!pool.atfork_set) pool.atfork_set = pthread_atfork(nullptr, nullptr, ResetInChild) == 0;
  if (!pool.atfork_set) return;
  pthread_attr_t detached;
  pthread_attr_init(&detached);
  pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);  // signals are for the threads of the application
  pthread_t thread;
  while (pool.workers < wanted && pthread_create(&thread, &detached, RunWorker, nullptr) == 0) ++pool.workers;
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  pthread_attr_destroy(&detached);
}

int64_t Now() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return int64_t{now.tv_sec} * 1000000000 + now.tv_nsec;
}

void SpinWhileBusy() {
  const int64_t until = Now() + kSpinNanoseconds;
  while (pool.at_work.load(std::memory_order_relaxed) > 0 && Now() < until) {
  }
}

void RunInPool(int32_t tasks, void (*fn)(void* context, int32_t task), void* context) {
  const int32_t helpers = std::min(tasks, PoolThreads()) - 1;
  Job job{fn, context, tasks, helpers};
  if (helpers <= 0) return job.DrainTasks();
  pthread_mutex_lock(&pool.mutex);
  if (pool.in_use) {  // a nested or concurrent call: the CPUs are taken, it runs its tasks itself
    pthread_mutex_unlock(&pool.mutex);
    return job.DrainTasks();
  }
  pool.in_use = true;
  StartWorkers(helpers);
  pool.job = &job;
  pthread_mutex_unlock(&pool.mutex);
  for (int32_t i = 0; i < helpers; ++i) pthread_cond_signal(&pool.wake);
  job.DrainTasks();
  SpinWhileBusy();
  pthread_mutex_lock(&pool.mutex);
  pool.job = nullptr;  // nobody joins any more
  while (pool.at_work.load(std::memory_order_relaxed) > 0) pthread_cond_wait(&pool.done, &pool.mutex);
  pool.in_use = false;
  pthread_mutex_unlock(&pool.mutex);
}

}  // namespace

void SetPoolThreads(int32_t threads) {
  if (threads < 0) throw Error("threads=" + std::to_string(threads) + "; it is 0 (all usable CPUs) or positive");
  const int32_t usable = UsableCpus();
  requested = threads;
  granted = threads == 0 ? usable : std::min(threads, usable);
}

int32_t PoolThreads() {
  const int32_t threads = granted.load(std::memory_order_relaxed);
  if (threads > 0) return threads;
  const int32_t usable = UsableCpus(), asked = requested;
  int32_t unset = 0;  // unless SetPoolThreads was faster
  granted.compare_exchange_strong(unset, asked == 0 ? usable : std::min(asked, usable));
  return granted;
}

const Executor& PoolExecutor() {
  thread_local Executor executor = {1, RunInPool};
  executor.threads = PoolThreads();
  return executor;
}

}  // namespace tersor

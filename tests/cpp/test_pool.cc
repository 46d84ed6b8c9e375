#include <dirent.h>
#include <pthread.h>
#include <sched.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <memory>
#include <vector>

#include "check.h"
#include "tersor/executor.h"

namespace {

using tersor::Executor;
using tersor::PoolExecutor;
using tersor::testing::InChild;
using tersor::testing::Quick;

int ThreadsOfProcess() {
  int count = 0;
  DIR* folder = opendir("/proc/self/task");
  while (const dirent* entry = readdir(folder)) count += entry->d_name[0] != '.';
  closedir(folder);
  return count;
}

// How often each task ran. Plain ints: a task that runs twice at once, or a result that the caller cannot see
// yet, is a data race for the thread sanitizer.
struct Tally {
  std::vector<int> runs;
  explicit Tally(int tasks) : runs(static_cast<size_t>(tasks), 0) {}
  static void Task(void* context, int32_t task) { ++static_cast<Tally*>(context)->runs[static_cast<size_t>(task)]; }
  bool AllRan(int times) const {
    for (int n : runs)
      if (n != times) return false;
    return true;
  }
};

void SlowTask(void* context, int32_t task) {
  usleep(2000);
  Tally::Task(context, task);
}

bool RunsEveryTask(int tasks, int times) {
  Tally tally(tasks);
  for (int i = 0; i < times; ++i) PoolExecutor().run(tasks, Tally::Task, &tally);
  return tally.AllRan(times);
}

double CpuSeconds() {
  timespec t;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
}

struct Nested {
  std::atomic<int> inner{0};
  static void Inner(void* context, int32_t) { ++static_cast<Nested*>(context)->inner; }
  static void Outer(void* context, int32_t) { PoolExecutor().run(5, Inner, context); }
};

// The first of two tasks waits, for a while, until the other has started: only two threads at once can do that.
struct Meeting {
  std::atomic<int> arrived{0};
  std::atomic<bool> met{false};
  static void Task(void* context, int32_t) {
    Meeting& meeting = *static_cast<Meeting*>(context);
    if (++meeting.arrived > 1) return;
    for (int i = 0; i < 2000 && meeting.arrived < 2; ++i) usleep(1000);
    meeting.met = meeting.arrived == 2;
  }
};

void* Caller(void* failures) {
  for (int i = 0; i < (Quick() ? 50 : 500); ++i)
    if (!RunsEveryTask(1 + i % 7, 3)) ++*static_cast<std::atomic<int>*>(failures);
  return nullptr;
}

}  // namespace

// First, while no worker exists.
TEST(StartsWithTheFirstCallThatNeedsIt) {
  const int before = ThreadsOfProcess();
  CHECK(PoolExecutor().threads == tersor::PoolThreads());
  CHECK(RunsEveryTask(0, 1));
  CHECK(RunsEveryTask(1, 3));
  CHECK_OR(ThreadsOfProcess() == before, "%d threads before, %d after serial calls", before, ThreadsOfProcess());
  CHECK(RunsEveryTask(64, 1));
  const int after = ThreadsOfProcess(), workers = tersor::PoolThreads() - 1;
  // The thread sanitizer starts one of its own with the first.
  CHECK_OR(after == before + workers || after == before + workers + 1, "%d threads started for %d workers",
           after - before, workers);
  CHECK(RunsEveryTask(64, 10));
  CHECK_OR(ThreadsOfProcess() == after, "%d threads, %d after more calls", after, ThreadsOfProcess());
}

TEST(ThreadsFollowTheRequestAndTheCpus) {
  const int usable = tersor::UsableCpus();
  tersor::SetPoolThreads(1);
  CHECK(tersor::PoolThreads() == 1 && PoolExecutor().threads == 1);
  CHECK(RunsEveryTask(9, 2));
  tersor::SetPoolThreads(usable + 100);
  CHECK(tersor::PoolThreads() == usable);
  tersor::SetPoolThreads(0);
  CHECK(tersor::PoolThreads() == usable);
  CHECK(tersor::testing::Holds(tersor::testing::ErrorOf([] { tersor::SetPoolThreads(-2); }), "threads=-2"));
  CHECK(tersor::PoolThreads() == usable);
}

TEST(AffinityCapsTheThreads) {
  const int result = InChild([] {
    cpu_set_t set;
    sched_getaffinity(0, sizeof set, &set);
    int kept = -1;
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu)
      if (CPU_ISSET(cpu, &set)) kept = cpu;
    CPU_ZERO(&set);
    CPU_SET(kept, &set);
    if (sched_setaffinity(0, sizeof set, &set) != 0) return 77;
    return tersor::UsableCpus() == 1 && tersor::PoolThreads() == 1 && RunsEveryTask(4, 2) ? 0 : 1;
  });
  CHECK_OR(result == 0, "child returned %d", result);
}

TEST(TasksRunAtTheSameTime) {
  if (tersor::PoolThreads() < 2) return;
  Meeting meeting;
  PoolExecutor().run(2, Meeting::Task, &meeting);
  CHECK(meeting.met);
}

TEST(ManyCallsLoseNoTask) {
  const int calls = Quick() ? 200 : 5000;
  for (int tasks : {1, 2, 3, 17, 1000}) CHECK(RunsEveryTask(tasks, calls / (tasks > 100 ? 10 : 1)));
}

// Slow tasks: the caller runs out of them while workers are still inside theirs.
TEST(ReturnsWhenTheLastTaskIsDone) {
  for (int i = 0; i < 20; ++i) {
    Tally tally(3);
    PoolExecutor().run(3, SlowTask, &tally);
    CHECK(tally.AllRan(1));
  }
}

TEST(NestedCallsRun) {
  Nested nested;
  for (int i = 0; i < 20; ++i) PoolExecutor().run(6, Nested::Outer, &nested);
  CHECK_OR(nested.inner == 20 * 6 * 5, "%d inner tasks", nested.inner.load());
}

TEST(CallsFromManyThreads) {
  std::atomic<int> failures{0};
  pthread_t callers[8];
  for (pthread_t& caller : callers) CHECK(pthread_create(&caller, nullptr, Caller, &failures) == 0);
  for (const pthread_t& caller : callers) pthread_join(caller, nullptr);
  CHECK(failures == 0);
}

// qemu-user 7.2 aborts when the child of a process with threads starts one: these two need a real CPU.
TEST(ChildOfForkStartsAfresh) {
  if (tersor::testing::Emulated()) return;
  CHECK(RunsEveryTask(8, 1));
  const int result = InChild([] {
    if (ThreadsOfProcess() > 2) return 2;  // the workers of the parent are not in here
    Meeting meeting;
    if (tersor::PoolThreads() > 1) PoolExecutor().run(2, Meeting::Task, &meeting);
    if (tersor::PoolThreads() > 1 && !meeting.met) return 3;
    if (!RunsEveryTask(32, 50)) return 1;
    return InChild([] { return RunsEveryTask(32, 50) ? 0 : 4; });  // and a grandchild
  });
  CHECK_OR(result == 0, "child returned %d", result);
  CHECK(RunsEveryTask(32, 50));
}

TEST(ForkWhileOthersUseThePool) {
  if (tersor::testing::Emulated()) return;
  std::atomic<int> failures{0};
  pthread_t callers[3];
  for (pthread_t& caller : callers) CHECK(pthread_create(&caller, nullptr, Caller, &failures) == 0);
  for (int i = 0; i < (Quick() ? 3 : 30); ++i) CHECK(InChild([] { return RunsEveryTask(16, 5) ? 0 : 1; }) == 0);
  for (const pthread_t& caller : callers) pthread_join(caller, nullptr);
  CHECK(failures == 0);
}

TEST(IdleWorkersUseNoCpu) {
  CHECK(RunsEveryTask(16, 100));
  usleep(20000);
  const double before = CpuSeconds();
  usleep(200000);
  const double used = CpuSeconds() - before;
  CHECK_OR(used < 0.02, "%.3f s of CPU time in 0.2 s of rest", used);
}

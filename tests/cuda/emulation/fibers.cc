// The scheduler: one fiber per CUDA thread, one block at a time, on one host thread. Compiled without sanitizers; tells
// them of fibers and synchronisation through weak symbols, so that one object serves every build.
#include <sys/mman.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <random>
#include <vector>

#include "emulation.h"
#include "scheduler.h"

#if !defined(__x86_64__)
#error "the switch between fibers is written for x86-64"
#endif

#define WEAK __attribute__((weak))
extern "C" {
WEAK void* __tsan_create_fiber(unsigned);
WEAK void __tsan_destroy_fiber(void*);
WEAK void* __tsan_get_current_fiber();
WEAK void __tsan_switch_to_fiber(void*, unsigned);
WEAK void __tsan_acquire(void*);
WEAK void __tsan_release(void*);
WEAK void AnnotateIgnoreReadsBegin(const char*, int);
WEAK void AnnotateIgnoreReadsEnd(const char*, int);
WEAK void AnnotateIgnoreWritesBegin(const char*, int);
WEAK void AnnotateIgnoreWritesEnd(const char*, int);
WEAK void __sanitizer_start_switch_fiber(void**, const void*, size_t);
WEAK void __sanitizer_finish_switch_fiber(void*, const void**, size_t*);
void emulation_switch(void** from, void* to);
}

// Saves the registers that a call preserves, and swaps stacks.
asm(R"(
.text
.globl emulation_switch
.type emulation_switch, @function
emulation_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulation_switch, .-emulation_switch
)");

namespace emulate {

Thread* current = nullptr;
uint3 block_index;
dim3 block_size, grid_size;
Counters counters;

Quiet::Quiet() {
  if (AnnotateIgnoreReadsBegin) AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
  if (AnnotateIgnoreWritesBegin) AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
}
Quiet::~Quiet() {
  if (AnnotateIgnoreReadsEnd) AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  if (AnnotateIgnoreWritesEnd) AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
}

namespace {

constexpr size_t kStackBytes = 256 << 10;
constexpr size_t kMaxThreads = 1024, kMaxShared = 227 << 10;
constexpr int kWarp = 32;

struct State {
  uint32_t seed = 0;
  std::mt19937 random;
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  std::vector<Fiber*> ready;  // those that can run, from `head` on
  size_t head = 0;
  std::vector<Fiber*> at_barrier;
  int live = 0;
  Fiber host;
  char* stacks = nullptr;
  size_t stack_bytes = 0;
  unsigned char* shared = nullptr;
  void (*body)(void*) = nullptr;
  void* context = nullptr;
  const void* host_stack = nullptr;
  size_t host_stack_bytes = 0;
  std::vector<void*> used_shared;      // freed after the grid, so that blocks stay unordered for the thread sanitizer
  char barrier_tag = 0, grid_tag = 0;  // a barrier and a grid, to the thread sanitizer
};
State s;

void SwitchTo(Fiber* from, Fiber* to, bool dying) {
  current = to == &s.host ? nullptr : to;
  if (__sanitizer_start_switch_fiber)
    __sanitizer_start_switch_fiber(dying ? nullptr : &from->asan_stack, to == &s.host ? s.host_stack : to->stack,
                                   to == &s.host ? s.host_stack_bytes : kStackBytes);
  if (__tsan_switch_to_fiber) __tsan_switch_to_fiber(to->tsan_fiber, 1);  // 1: implies no synchronisation
  emulation_switch(&from->stack_pointer, to->stack_pointer);
  if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(from->asan_stack, nullptr, nullptr);
}

Fiber* TakeReady() {
  if (s.head == s.ready.size()) return nullptr;
  if (s.seed != 0) std::swap(s.ready[s.head], s.ready[s.head + s.random() % (s.ready.size() - s.head)]);
  Fiber* fiber = s.ready[s.head++];
  if (s.head >= 4096) {
    s.ready.erase(s.ready.begin(), s.ready.begin() + static_cast<ptrdiff_t>(s.head));
    s.head = 0;
  }
  return fiber;
}

// The caller has put itself where somebody will wake it.
void Yield() {
  Fiber* me = static_cast<Fiber*>(current);
  Fiber* next = TakeReady();
  if (next == nullptr) Fail("deadlock: every thread waits at a barrier or warp operation that others do not reach");
  if (next != me) SwitchTo(me, next, false);
}

void OpenBarrierIfFull() {
  if (s.live == 0 || static_cast<int>(s.at_barrier.size()) != s.live) return;
  ++counters.barriers;
  s.ready.insert(s.ready.end(), s.at_barrier.begin(), s.at_barrier.end());
  s.at_barrier.clear();
}

void Entry() {
  const bool first = s.host_stack == nullptr;  // only then is it the host's stack that was left
  if (__sanitizer_finish_switch_fiber)
    __sanitizer_finish_switch_fiber(nullptr, first ? &s.host_stack : nullptr, first ? &s.host_stack_bytes : nullptr);
  s.body(s.context);
  Fiber* me = static_cast<Fiber*>(current);
  if (me->copies_open()) Fail("the kernel ended with an asynchronous copy in flight");
  if (__tsan_release) __tsan_release(&s.grid_tag);
  Fiber* next;
  {
    Quiet quiet;
    --s.live;
    OpenBarrierIfFull();  // threads that have left do not count
    next = TakeReady();
  }
  if (next == nullptr && s.live > 0) Fail("deadlock: the remaining threads wait for one that has left");
  SwitchTo(me, next != nullptr ? next : &s.host, true);
}

void PrepareStacks(int threads) {
  const size_t bytes = static_cast<size_t>(threads) * kStackBytes;
  if (bytes <= s.stack_bytes && !__tsan_create_fiber) return;  // the thread sanitizer remembers accesses to old stacks
  if (s.stacks != nullptr) munmap(s.stacks, s.stack_bytes);
  void* map = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (map == MAP_FAILED) Fail("no memory for %d stacks", threads);
  s.stacks = static_cast<char*>(map);
  s.stack_bytes = bytes;
}

void PrepareThreads(int threads) {
  PrepareStacks(threads);
  s.fibers.assign(static_cast<size_t>(threads), Fiber{});
  s.warps.assign(static_cast<size_t>((threads + kWarp - 1) / kWarp), Warp{});
  s.ready.clear();
  s.head = 0;
  s.live = threads;
  for (int i = 0; i < threads; ++i) {
    Fiber& f = s.fibers[static_cast<size_t>(i)];
    const unsigned u = static_cast<unsigned>(i);
    f.index = {u % block_size.x, u / block_size.x % block_size.y, u / (block_size.x * block_size.y)};
    f.linear = i;
    f.lane = i % kWarp;
    f.warp = i / kWarp;
    f.stack = s.stacks + static_cast<size_t>(i) * kStackBytes;
    void** top = reinterpret_cast<void**>(f.stack + kStackBytes) - 2;  // return address aligned as after a call
    top[0] = reinterpret_cast<void*>(Entry);
    f.stack_pointer = top - 6;
    if (__tsan_create_fiber) f.tsan_fiber = __tsan_create_fiber(0);
    s.ready.push_back(&f);
  }
}

void FreeShared() {
  for (void* shared : s.used_shared) std::free(shared);
  s.used_shared.clear();
}

void RunBlock(int threads, size_t shared_bytes) {
  ++counters.blocks;
  void* shared = nullptr;
  if (shared_bytes > 0 && posix_memalign(&shared, 128, shared_bytes) != 0) Fail("no shared memory");
  s.shared = static_cast<unsigned char*>(shared);
  if (shared_bytes > 0) std::memset(shared, 0xcd, shared_bytes);
  PrepareThreads(threads);  // after the memory, which they then own to the thread sanitizer
  SwitchTo(&s.host, TakeReady(), false);
  for (Fiber& f : s.fibers)
    if (__tsan_destroy_fiber) __tsan_destroy_fiber(f.tsan_fiber);
  s.used_shared.push_back(shared);
  if (!__tsan_create_fiber) FreeShared();
  s.shared = nullptr;
}

}  // namespace

void Fail(const char* format, ...) {
  std::fprintf(stderr, "emulation: ");
  va_list arguments;
  va_start(arguments, format);
  std::vfprintf(stderr, format, arguments);
  va_end(arguments);
  if (current != nullptr)
    std::fprintf(stderr, " (block %u,%u,%u thread %d)", block_index.x, block_index.y, block_index.z, current->linear);
  std::fprintf(stderr, "\n");
  std::_Exit(86);
}

void SetSchedule(uint32_t seed) { s.seed = seed; }
unsigned char* DynamicShared() { return s.shared; }

void RunGrid(dim3 grid, dim3 block, size_t shared_bytes, void (*body)(void*), void* context) {
  const size_t threads = size_t{block.x} * block.y * block.z, blocks = size_t{grid.x} * grid.y * grid.z;
  if (current != nullptr) Fail("a kernel cannot launch one");
  if (threads < 1 || threads > kMaxThreads || shared_bytes > kMaxShared || blocks < 1 || grid.y > 65535 ||
      grid.z > 65535)
    Fail("launch of %ux%ux%u blocks of %zu threads with %zu bytes of shared memory", grid.x, grid.y, grid.z, threads,
         shared_bytes);
  grid_size = grid;
  block_size = block;
  s.body = body;
  s.context = context;
  s.random.seed(s.seed);
  if (__tsan_get_current_fiber) s.host.tsan_fiber = __tsan_get_current_fiber();
  std::vector<size_t> order(blocks);
  std::iota(order.begin(), order.end(), size_t{0});
  if (s.seed != 0) std::shuffle(order.begin(), order.end(), s.random);
  for (size_t b : order) {
    block_index = {static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
                   static_cast<unsigned>(b / (size_t{grid.x} * grid.y))};
    RunBlock(static_cast<int>(threads), shared_bytes);
  }
  if (__tsan_acquire) __tsan_acquire(&s.grid_tag);
  FreeShared();
}

void Barrier() {
  if (__tsan_release) __tsan_release(&s.barrier_tag);
  {
    Quiet quiet;
    s.at_barrier.push_back(static_cast<Fiber*>(current));
    OpenBarrierIfFull();
    Yield();
  }
  if (__tsan_acquire) __tsan_acquire(&s.barrier_tag);
}

void Collective(const char* name, uint32_t mask, void* mine, void (*fn)(void**, uint32_t)) {
  Quiet quiet;
  Fiber* me = static_cast<Fiber*>(current);
  Warp& warp = s.warps[static_cast<size_t>(me->warp)];
  if ((mask >> me->lane & 1) == 0) Fail("%s: the mask %08x leaves out the calling lane", name, mask);
  if (warp.arrived == 0) {
    warp.name = name;
    warp.mask = mask;
  } else if (std::strcmp(warp.name, name) != 0 || warp.mask != mask) {
    Fail("divergent warp: %s with mask %08x meets %s with mask %08x", name, mask, warp.name, warp.mask);
  }
  warp.lanes[me->lane] = mine;
  warp.waiting[warp.arrived++] = me;
  if (warp.arrived == __builtin_popcount(mask)) {
    if (fn != nullptr) fn(warp.lanes, mask);
    s.ready.insert(s.ready.end(), warp.waiting, warp.waiting + warp.arrived);
    warp.arrived = 0;
  }
  Yield();
}

// Orders memory between the lanes; no other warp operation does.
void SyncWarp(uint32_t mask) {
  char* tag = reinterpret_cast<char*>(&s.warps[static_cast<size_t>(current->warp)]);
  if (__tsan_release) __tsan_release(tag);
  Collective("__syncwarp", mask, nullptr, nullptr);
  if (__tsan_acquire) __tsan_acquire(tag);
}

// Stronger than the device's: what was written before any fence is seen after this one.
void Fence() {
  if (__tsan_release) __tsan_release(&s.grid_tag);
  if (__tsan_acquire) __tsan_acquire(&s.grid_tag);
}

}  // namespace emulate

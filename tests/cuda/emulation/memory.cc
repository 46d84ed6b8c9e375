// Shuffles, votes, asynchronous copies and the bank counters.
#include <set>

#include "emulation.h"
#include "scheduler.h"

#define WEAK __attribute__((weak))
extern "C" {
WEAK void __tsan_read_range(void*, unsigned long);
WEAK void __tsan_write_range(void*, unsigned long);
WEAK void* __asan_region_is_poisoned(void*, size_t);
}

namespace emulate {
namespace {

constexpr uint32_t kFull = 0xffffffffu;

bool Aligned(const void* p, int bytes) { return reinterpret_cast<uintptr_t>(p) % static_cast<uintptr_t>(bytes) == 0; }

struct ShuffleLane {
  Shuffle kind;
  uint32_t value, result;
  int argument, width;
};

// The lane that `lane` reads from: itself when the source is outside of its segment of `width` lanes.
int ShuffleSource(const ShuffleLane& s, int lane) {
  const int segment = lane & ~(s.width - 1);
  int source = lane;
  switch (s.kind) {
    case Shuffle::kIndex:
      return segment + (s.argument & (s.width - 1));
    case Shuffle::kXor:
      source = lane ^ s.argument;
      break;
    case Shuffle::kUp:
      source = lane - s.argument;
      break;
    case Shuffle::kDown:
      source = lane + s.argument;
      break;
  }
  return source >= segment && source < segment + s.width ? source : lane;
}

// Cycles of one access: 32 banks of 4 bytes; different words of one bank take turns, in groups of 128 bytes of data.
uint64_t Wavefronts(const void* const* addresses, int bytes) {
  uint64_t total = 0;
  const int group = 128 / bytes;
  for (int first = 0; first < 32; first += group) {
    std::set<uintptr_t> words[32];
    for (int lane = first; lane < first + group; ++lane)
      for (int i = 0; i < bytes; i += 4) {
        const uintptr_t word = (reinterpret_cast<uintptr_t>(addresses[lane]) + static_cast<uintptr_t>(i)) / 4;
        words[word % 32].insert(word);
      }
    size_t most = 0;
    for (const auto& bank : words) most = std::max(most, bank.size());
    total += most;
  }
  return total;
}

struct SharedLane {
  const void* address;
  int bytes;
};

}  // namespace

void CheckAccess(const void* p, int bytes, bool write) {
  void* address = const_cast<void*>(p);
  const unsigned long size = static_cast<unsigned long>(bytes);
  if (__asan_region_is_poisoned && __asan_region_is_poisoned(address, size) != nullptr)
    Fail("out of bounds: %s of %d bytes", write ? "write" : "read", bytes);
  if (write && __tsan_write_range) __tsan_write_range(address, size);
  if (!write && __tsan_read_range) __tsan_read_range(address, size);
}

uint32_t ShuffleBits(Shuffle kind, uint32_t mask, uint32_t value, int argument, int width) {
  ShuffleLane mine = {kind, value, 0, argument, width};
  Collective("shuffle", mask, &mine, [](void** lanes, uint32_t among) {
    for (int lane = 0; lane < 32; ++lane) {
      if ((among >> lane & 1) == 0) continue;
      ShuffleLane& to = *static_cast<ShuffleLane*>(lanes[lane]);
      const int source = ShuffleSource(to, lane);
      if ((among >> source & 1) == 0) Fail("shuffle: lane %d reads lane %d, which is not in the mask", lane, source);
      to.result = static_cast<ShuffleLane*>(lanes[source])->value;
    }
  });
  return mine.result;
}

uint32_t Ballot(uint32_t mask, bool predicate) {
  uint32_t mine = predicate;
  Collective("ballot", mask, &mine, [](void** lanes, uint32_t among) {
    uint32_t votes = 0;
    for (int lane = 0; lane < 32; ++lane)
      if (among >> lane & 1) votes |= *static_cast<uint32_t*>(lanes[lane]) << lane;
    for (int lane = 0; lane < 32; ++lane)
      if (among >> lane & 1) *static_cast<uint32_t*>(lanes[lane]) = votes;
  });
  return mine;
}

void SharedAccess(const void* p, int bytes) {
  SharedLane mine = {p, bytes};
  if (!Aligned(p, bytes)) Fail("misaligned: access of %d bytes to shared memory", bytes);
  Collective("shared access", kFull, &mine, [](void** lanes, uint32_t) {
    const void* addresses[32];
    for (int lane = 0; lane < 32; ++lane) addresses[lane] = static_cast<SharedLane*>(lanes[lane])->address;
    ++counters.shared;
    counters.shared_wavefronts += Wavefronts(addresses, static_cast<SharedLane*>(lanes[0])->bytes);
  });
}

void CopyAsync(void* dst, const void* src, int bytes, int src_bytes) {
  if (bytes != 4 && bytes != 8 && bytes != 16) Fail("asynchronous copy of %d bytes", bytes);
  if (src_bytes < 0 || src_bytes > bytes) Fail("asynchronous copy of %d of %d bytes", src_bytes, bytes);
  if (!Aligned(dst, bytes) || (src_bytes > 0 && !Aligned(src, bytes))) Fail("misaligned: asynchronous copy");
  CheckAccess(dst, bytes, true);
  if (src_bytes > 0) CheckAccess(src, src_bytes, false);
  Quiet quiet;
  ++counters.async_copies;
  counters.async_bytes += static_cast<uint64_t>(src_bytes);
  std::memset(dst, 0xa5, static_cast<size_t>(bytes));
  static_cast<Fiber*>(current)->uncommitted.push_back({dst, src, bytes, src_bytes});
}

void CopyAsyncCommit() {
  Quiet quiet;
  Fiber* me = static_cast<Fiber*>(current);
  me->groups.push_back(std::move(me->uncommitted));
  me->uncommitted.clear();
}

void CopyAsyncWait(int pending) {
  Fiber* me = static_cast<Fiber*>(current);
  while (static_cast<int>(me->groups.size()) > pending) {
    for (const Copy& copy : me->groups.front()) CheckAccess(copy.dst, copy.bytes, true);
    Quiet quiet;
    for (const Copy& copy : me->groups.front()) {
      std::memset(copy.dst, 0, static_cast<size_t>(copy.bytes));
      if (copy.src_bytes > 0) std::memcpy(copy.dst, copy.src, static_cast<size_t>(copy.src_bytes));
    }
    me->groups.erase(me->groups.begin());
  }
}

uint4 LoadStream16(const void* global) {
  if (!Aligned(global, 16)) Fail("misaligned: load of 16 bytes");
  CheckAccess(global, 16, false);
  Quiet quiet;
  uint4 value;
  std::memcpy(&value, global, sizeof value);
  return value;
}

uint32_t IncrementWrap(uint32_t* global, uint32_t last) {
  Fence();
  const uint32_t old = *global;
  *global = old >= last ? 0 : old + 1;
  Fence();
  return old;
}

}  // namespace emulate

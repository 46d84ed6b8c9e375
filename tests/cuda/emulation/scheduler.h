// Between the files of the emulation: a CUDA thread and what it has in flight.
#pragma once
#include <vector>

#include "emulation.h"

namespace emulate {

struct Copy {
  void* dst;
  const void* src;
  int bytes, src_bytes;
};

struct Fiber : Thread {
  void* stack_pointer = nullptr;
  char* stack = nullptr;
  void* tsan_fiber = nullptr;
  void* asan_stack = nullptr;
  std::vector<Copy> uncommitted;
  std::vector<std::vector<Copy>> groups;  // oldest first

  bool copies_open() const {
    if (!uncommitted.empty()) return true;
    for (const auto& group : groups)
      if (!group.empty()) return true;
    return false;
  }
};

// What the lanes of a warp that have arrived at a warp operation left there.
struct Warp {
  int arrived;
  uint32_t mask;
  const char* name;
  void* lanes[32];
  Fiber* waiting[32];
};

// While it lives, the thread sanitizer overlooks what the emulation's own containers and copies do.
class Quiet {
 public:
  Quiet();
  ~Quiet();
  Quiet(const Quiet&) = delete;
  Quiet& operator=(const Quiet&) = delete;
};

// An access that the compiler did not instrument: reports it to the sanitizers.
void CheckAccess(const void* p, int bytes, bool write);

}  // namespace emulate

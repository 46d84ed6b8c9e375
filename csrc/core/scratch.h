// Per-thread scratch memory: no allocation per call after the first.
#pragma once
#include <cstddef>
#include <cstdint>

namespace tersor {

constexpr size_t kCacheLine = 64;

// A bump allocator over this thread's block of an arena, 64-byte aligned. Reserve first, then take the pieces; a later
// Reserve by the same thread invalidates them. A block over kScratchKeepBytes is freed when the call ends.
constexpr size_t kScratchKeepBytes = size_t{4} << 20;

// Blocks of different users, which may be held at the same time: an op that calls other ops takes one of its own.
enum class Arena : int { kOp = 0, kBlockTask = 1, kBlockCall = 2, kBlockPanels = 3 };
constexpr int kArenas = 4;

class Scratch {
 public:
  explicit Scratch(size_t bytes, Arena arena = Arena::kOp);
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  // False when memory ran out; the op then reports it from the calling thread.
  bool ok() const { return next_ != nullptr; }

  template <typename T>
  T* Take(size_t count) {
    T* piece = reinterpret_cast<T*>(next_);
    next_ += Padded<T>(count);
    return piece;
  }
  template <typename T>
  static size_t Padded(size_t count) {
    return (count * sizeof(T) + kCacheLine - 1) / kCacheLine * kCacheLine;
  }

 private:
  const int arena_;
  char* next_;
};

}  // namespace tersor

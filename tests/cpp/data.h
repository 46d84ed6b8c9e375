// Deterministic random data, and buffers that notice a read or write outside of them.
#pragma once
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace tersor::testing {

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t Bits() {  // splitmix64
    uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
  }
  int32_t Int(int32_t lo, int32_t hi) {  // both included
    return lo + static_cast<int32_t>(Bits() % (static_cast<uint64_t>(int64_t{hi} - lo) + 1));
  }
  float Uniform(float lo, float hi) { return lo + (hi - lo) * (static_cast<float>(Bits() >> 40) * 0x1p-24f); }

 private:
  uint64_t state_;
};

// One region of memory that ends at an unmapped page. Place() puts an array against that end, so that touching
// the first element past it is a fault, and a known pattern in front of it.
class Fenced {
 public:
  explicit Fenced(size_t capacity) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    bytes_ = (capacity + kFront + page - 1) / page * page + page;
    void* map = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED || mprotect(static_cast<char*>(map) + bytes_ - page, page, PROT_NONE) != 0) std::abort();
    map_ = static_cast<char*>(map);
    end_ = map_ + bytes_ - page;
  }
  ~Fenced() { munmap(map_, bytes_); }
  Fenced(const Fenced&) = delete;
  Fenced& operator=(const Fenced&) = delete;

  // Every byte of the array is set to 0xa5.
  template <typename T>
  T* Place(size_t count) {
    begin_ = end_ - count * sizeof(T);
    if (begin_ - kFront < map_) std::abort();
    std::memset(begin_ - kFront, kPattern, static_cast<size_t>(end_ - begin_) + kFront);
    return reinterpret_cast<T*>(begin_);
  }
  template <typename T>
  T* Copy(const std::vector<T>& values) {
    T* to = Place<T>(values.size());
    if (!values.empty()) std::memcpy(to, values.data(), values.size() * sizeof(T));
    return to;
  }
  bool FrontIntact() const { return Untouched(begin_ - kFront, begin_); }
  static bool Untouched(const void* begin, const void* end) {
    for (const char* p = static_cast<const char*>(begin); p != end; ++p)
      if (*p != kPattern) return false;
    return true;
  }

 private:
  static constexpr size_t kFront = 256;
  static constexpr char kPattern = static_cast<char>(0xa5);
  char *map_, *end_, *begin_ = nullptr;
  size_t bytes_;
};

inline uint32_t BitsOf(float x) {
  uint32_t u;
  std::memcpy(&u, &x, sizeof u);
  return u;
}
inline float FloatOf(uint32_t u) {
  float x;
  std::memcpy(&x, &u, sizeof x);
  return x;
}
// Equal bits, or both NaN.
inline bool SameFloat(float a, float b) { return BitsOf(a) == BitsOf(b) || (a != a && b != b); }

}  // namespace tersor::testing

#pragma once
#include <cstdint>

namespace tersor {

struct Range {
  int64_t begin, end;
  int64_t count() const { return end - begin; }
};

// [0, count) in `parts` pieces whose sizes differ by one at most; no division per piece.
struct EvenSplit {
  int64_t each, longer;
  EvenSplit(int64_t count, int64_t parts) : each(count / parts), longer(count % parts) {}
  int64_t Begin(int64_t i) const { return i * each + (i < longer ? i : longer); }
  Range operator[](int64_t i) const { return {Begin(i), Begin(i + 1)}; }
};

}  // namespace tersor

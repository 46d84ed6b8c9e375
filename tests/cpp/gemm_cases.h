// Integer matrices for the GEMM tests.
#pragma once
#include <cstdint>
#include <vector>

#include "data.h"

namespace tersor::testing {

// kRandom, or values that drive every sum to its bounds.
enum class Fill { kRandom, kHighest, kLowest, kAlternating };
constexpr Fill kFills[] = {Fill::kRandom, Fill::kHighest, Fill::kLowest, Fill::kAlternating};

inline std::vector<uint8_t> Activations(Fill fill, int64_t count, Random& random) {
  std::vector<uint8_t> a(static_cast<size_t>(count), 255);
  if (fill == Fill::kRandom)
    for (uint8_t& v : a) v = static_cast<uint8_t>(random.Int(0, 255));
  return a;
}

inline std::vector<int8_t> Weights(Fill fill, int64_t count, Random& random) {
  std::vector<int8_t> w(static_cast<size_t>(count), fill == Fill::kHighest ? 127 : -127);
  for (size_t i = 0; i < w.size(); ++i) {
    if (fill == Fill::kRandom) w[i] = static_cast<int8_t>(random.Int(-127, 127));
    if (fill == Fill::kAlternating && i % 2 == 0) w[i] = 127;
  }
  return w;
}

inline std::vector<int64_t> Depths() { return {1, 3, 4, 5, 63, 64, 65, 127, 129, 1000}; }

// The values >= 1, each once, in the given order.
inline std::vector<int32_t> Positive(const std::vector<int32_t>& values) {
  std::vector<int32_t> kept;
  for (int32_t v : values) {
    bool known = v < 1;
    for (int32_t k : kept) known = known || k == v;
    if (!known) kept.push_back(v);
  }
  return kept;
}

}  // namespace tersor::testing

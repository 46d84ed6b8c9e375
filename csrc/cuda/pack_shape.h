// What every packer of this folder checks first.
#pragma once
#include <cstdint>
#include <string>

#include "tersor/error.h"
#include "tersor/linear_s8.h"

namespace tersor::cuda {

inline void CheckPackShape(int64_t n, int64_t k) {
  if (n < 1 || k < 1 || n > INT32_MAX || k > kMaxDepthS8)
    throw Error("a weight of " + std::to_string(n) + " x " + std::to_string(k) +
                ": n and k must be positive, k at most " + std::to_string(kMaxDepthS8));
}

}  // namespace tersor::cuda

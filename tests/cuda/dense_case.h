// A quantised A, a W and what the device holds of them.
#pragma once
#include <cstdint>
#include <vector>

#include "../cpp/gemm_cases.h"
#include "check.h"
#include "epilogue_case.h"
#include "tersor/cuda.h"

namespace tersor::testing {

struct DenseCase {
  int64_t m, n, k, lda;
  std::vector<uint8_t> a;  // [m][lda]; beyond k anything, the weights are 0 there
  std::vector<int8_t> w;   // [n][k]
  std::vector<uint8_t> packed;
  std::vector<int32_t> col_sum;

  DenseCase(int64_t rows, int64_t columns, int64_t depth, Fill fill, uint64_t seed)
      : m(rows), n(columns), k(depth), lda(cuda::PadDepthS8(depth)) {
    Random random(seed);
    a = Activations(fill, m * lda, random);
    w = Weights(fill, n * k, random);
    packed.assign(static_cast<size_t>(cuda::PackedBytesGemmS8(n, k)), 0xa5);
    col_sum.assign(static_cast<size_t>(n), -1);
    CHECK(cuda::PackGemmS8(n, k, w.data(), k, packed.data(), col_sum.data(), nullptr) == 0);
  }
  std::vector<int32_t> Sums() const {
    std::vector<int32_t> c(static_cast<size_t>(m * n));
    reference::GemmS8(m, n, k, a.data(), lda, w.data(), c.data(), n);
    return c;
  }
};

}  // namespace tersor::testing

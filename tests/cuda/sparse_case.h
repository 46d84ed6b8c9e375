// A sparse W, quantised activations and the exact sums, for the sparse CUDA kernels.
#pragma once
#include <cstdint>
#include <vector>

#include "../cpp/gemm_cases.h"
#include "check.h"
#include "emulation.h"
#include "epilogue_case.h"
#include "tersor/cuda.h"
#include "tersor/cuda_pack.h"

namespace tersor::testing {

enum class Thinning { kNone, kTwoOfFour, kHalf, kTenth, kHundredth, kOneRow, kAll };

// Whether the weights of a row that a thinning keeps; at most 2 of 4 consecutive for kTwoOfFour and those below it.
inline void Thin(Thinning thinning, int64_t n, int64_t k, Random& random, std::vector<int8_t>& w) {
  for (int64_t j = 0; j < n; ++j)
    for (int64_t group = 0; group < k; group += 4) {
      const int first = random.Int(0, 3), second = (first + random.Int(1, 3)) % 4;
      for (int64_t p = group; p < std::min(group + 4, k); ++p) {
        const int place = static_cast<int>(p - group), chance = random.Int(0, 99);
        bool keep = true;
        if (thinning == Thinning::kTwoOfFour) keep = place == first || place == second;
        if (thinning == Thinning::kHalf) keep = chance < 50;
        if (thinning == Thinning::kTenth) keep = chance < 10;
        if (thinning == Thinning::kHundredth) keep = chance < 1;
        if (thinning == Thinning::kOneRow) keep = j == n / 2;
        if (thinning == Thinning::kAll) keep = false;
        if (!keep) w[static_cast<size_t>(j * k + p)] = 0;
      }
    }
}

struct SparseCase {
  int64_t m, n, k, lda;
  std::vector<uint8_t> a;  // [m][lda]
  std::vector<int8_t> w;   // [n][k]
  std::vector<int32_t> col_sum;

  SparseCase(int64_t rows, int64_t columns, int64_t depth, Thinning thinning, uint64_t seed, Fill fill = Fill::kRandom)
      : m(rows), n(columns), k(depth), lda(cuda::PadDepthS8(depth)) {
    Random random(seed);
    a = Activations(fill, m * lda, random);
    w = Weights(fill, n * k, random);
    Thin(thinning, n, k, random, w);
    col_sum.resize(static_cast<size_t>(n));
    cuda::ColumnSums(n, k, w.data(), col_sum.data());
  }
  std::vector<int32_t> Sums() const {
    std::vector<int32_t> c(static_cast<size_t>(m * n));
    reference::GemmS8(m, n, k, a.data(), lda, w.data(), c.data(), n);
    return c;
  }
};

// Args with what all sparse kernels share. The packed arrays are put in by the caller.
template <typename Args>
Args ArgsOf(const SparseCase& c, const cuda::Epilogue& epilogue) {
  Args args = {};
  args.m = c.m, args.n = c.n, args.k = c.k;
  args.a = c.a.data();
  args.lda = c.lda;
  args.epilogue = epilogue;
  return args;
}

// launch(case, epilogue) packs and runs. The integers, in every schedule.
template <typename Launch>
void CheckSums(const char* what, const SparseCase& c, Launch launch) {
  const std::vector<int32_t> want = c.Sums();
  for (uint32_t seed = 0; seed < (Quick() ? 1u : 3u); ++seed) {
    emulate::SetSchedule(seed);
    std::vector<int32_t> sums(static_cast<size_t>(c.m * c.n), INT32_MIN);
    cuda::Epilogue e = {};
    e.sums = sums.data();
    e.ldy = c.n;
    CHECK(launch(c, e) == 0);
    for (size_t i = 0; i < want.size() && !TooManyFailures(); ++i)
      CHECK_OR(sums[i] == want[i], "%s m=%ld n=%ld k=%ld schedule %u: sum %zu is %d, not %d", what, long{c.m},
               long{c.n}, long{c.k}, seed, i, sums[i], want[i]);
  }
  emulate::SetSchedule(0);
}

// y, with every epilogue.
template <typename Launch>
void CheckEpilogues(const char* what, const SparseCase& c, Launch launch) {
  const std::vector<int32_t> sums = c.Sums();
  uint64_t seed = 1;
  for (const EpilogueKind& kind : kEpilogues) {
    EpilogueCase epilogue(kind, c.m, c.n, 1.0f / 4096.0f, seed, static_cast<int64_t>(seed % 3));
    ++seed;
    CHECK(launch(c, epilogue.Args(c.col_sum)) == 0);
    epilogue.Check(what, epilogue.Expected(sums, c.col_sum));
  }
}

}  // namespace tersor::testing

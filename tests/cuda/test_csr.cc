// csr_s8 against the dense definition, csr_f32 with sums that are exact and against its error bound.
#include <cmath>

#include "sparse_case.h"

namespace tersor::testing {
namespace {

template <typename Value>
struct PackedCsr {
  std::vector<Value> values;
  std::vector<int32_t> row_offsets;
  std::vector<uint16_t> column_indices;
  template <typename Args>
  void PutInto(Args& args) const {
    args.values = values.data();
    args.row_offsets = row_offsets.data();
    args.column_indices = column_indices.data();
  }
};

PackedCsr<int8_t> PackS8(int64_t n, int64_t k, const std::vector<int8_t>& w) {
  PackedCsr<int8_t> packed;
  const size_t count = static_cast<size_t>(cuda::CountNonZerosS8(n, k, w.data()));
  packed.values.resize(count);
  packed.column_indices.resize(count);
  packed.row_offsets.resize(static_cast<size_t>(n + 1));
  cuda::PackCsrS8(n, k, w.data(), packed.values.data(), packed.row_offsets.data(), packed.column_indices.data());
  return packed;
}

int LaunchS8(const SparseCase& c, const cuda::Epilogue& epilogue) {
  const PackedCsr<int8_t> packed = PackS8(c.n, c.k, c.w);
  auto args = ArgsOf<cuda::CsrArgs>(c, epilogue);
  packed.PutInto(args);
  return cuda::CsrS8(args, nullptr);
}

TEST(CsrS8Sums) {
  const int64_t shapes[][3] = {{1, 1, 1}, {2, 33, 65}, {4, 5, 300}, {8, 300, 40}, {9, 17, 640}, {33, 20, 100}};
  for (const auto& s : shapes)
    for (const Thinning thinning : {Thinning::kTenth, Thinning::kHundredth, Thinning::kOneRow, Thinning::kAll}) {
      if (Quick() && thinning == Thinning::kOneRow) continue;
      CheckSums("csr_s8", SparseCase(s[0], s[1], s[2], thinning, 11), LaunchS8);
    }
}

// So deep that fewer tokens fit into shared memory: 8, 4, 2 and 1.
TEST(CsrS8Deep) {
  for (const int64_t k : {int64_t{12288}, int64_t{12289}, int64_t{24577}, int64_t{49153}, int64_t{65536}}) {
    if (Quick() && k != 24577) continue;
    CheckSums("csr_s8", SparseCase(9, 3, k, Thinning::kHundredth, 11), LaunchS8);
  }
}

TEST(CsrS8Epilogues) {
  CheckEpilogues("csr_s8", SparseCase(5, 37, 100, Thinning::kTenth, 3), LaunchS8);
  CheckEpilogues("csr_s8", SparseCase(13, 19, 64, Thinning::kHundredth, 4), LaunchS8);
}

struct CaseF32 {
  int64_t m, n, k, lda;
  Values a;
  std::vector<float> w;
  PackedCsr<float> packed;

  CaseF32(int64_t rows, int64_t columns, int64_t depth, DType dtype, bool integers, uint64_t seed)
      : m(rows), n(columns), k(depth), lda(depth + 3), a(dtype, static_cast<size_t>((rows - 1) * lda + depth)) {
    Random random(seed);
    for (int64_t i = 0; i < m; ++i)
      for (int64_t p = 0; p < k; ++p) {
        const float v = integers ? static_cast<float>(random.Int(-16, 16)) : a.Round(random.Uniform(-2.0f, 2.0f));
        a.Set(static_cast<size_t>(i * lda + p), v);
      }
    for (int64_t i = 0; i < n * k; ++i) {
      const float v = integers ? static_cast<float>(random.Int(-16, 16)) : random.Uniform(-1.0f, 1.0f);
      w.push_back(random.Int(0, 9) == 0 ? v : 0.0f);
    }
    const size_t count = static_cast<size_t>(cuda::CountNonZerosF32(n, k, w.data()));
    packed.values.resize(count);
    packed.column_indices.resize(count);
    packed.row_offsets.resize(static_cast<size_t>(n + 1));
    cuda::PackCsrF32(n, k, w.data(), packed.values.data(), packed.row_offsets.data(), packed.column_indices.data());
  }
  int Launch(const cuda::Epilogue& epilogue) {
    cuda::CsrArgs args = {};
    args.m = m, args.n = n, args.k = k;
    args.a = a.data();
    args.lda = lda;
    args.epilogue = epilogue;
    packed.PutInto(args);
    return cuda::CsrF32(args, nullptr);
  }
  // The exact sum, and that of magnitudes.
  void SumOf(int64_t i, int64_t j, double& sum, double& magnitude) const {
    sum = magnitude = 0.0;
    for (int64_t p = 0; p < k; ++p) {
      const double product =
          double{a.Get(static_cast<size_t>(i * lda + p))} * double{w[static_cast<size_t>(j * k + p)]};
      sum += product;
      magnitude += std::fabs(product);
    }
  }
};

const int64_t kFloatShapes[][3] = {{1, 5, 70}, {3, 40, 300}, {6, 9, 33}, {2, 3, 12289}, {5, 2, 24577}};

TEST(CsrF32Exact) {
  uint64_t seed = 1;
  for (const auto& s : kFloatShapes)
    for (const EpilogueKind& kind : kEpilogues) {
      if (++seed % 2 == 0 && Quick()) continue;
      CaseF32 c(s[0], s[1], s[2], kind.dtype, true, seed);
      EpilogueCase epilogue(kind, c.m, c.n, 1.0f / 64.0f, seed);
      const std::vector<int32_t> unused(static_cast<size_t>(c.n));
      cuda::Epilogue e = epilogue.Args(unused);
      if (kind.bias) e.row_scale = nullptr;
      CHECK(c.Launch(e) == 0);
      std::vector<float> scaled;
      for (int64_t i = 0; i < c.m; ++i)
        for (int64_t j = 0; j < c.n; ++j) {
          double sum, magnitude;
          c.SumOf(i, j, sum, magnitude);
          const float row_scale = kind.bias ? 1.0f : epilogue.row_scale[static_cast<size_t>(i)];
          scaled.push_back(static_cast<float>(sum) * (row_scale * epilogue.col_scale[static_cast<size_t>(j)]));
        }
      epilogue.Check("csr_f32", epilogue.Finish(scaled));
    }
}

// A lane's chain of at most ceil(nnz / 32) fused steps and a tree of 5 additions: each rounds by at most 2^-24 of a sum
// that the magnitudes bound.
TEST(CsrF32Bound) {
  CaseF32 c(5, 20, 900, DType::kF32, false, 7);
  std::vector<float> y(static_cast<size_t>(c.m * c.n), std::nanf(""));
  cuda::Epilogue e = {};
  e.y = y.data();
  e.ldy = c.n;
  CHECK(c.Launch(e) == 0);
  for (int64_t i = 0; i < c.m; ++i)
    for (int64_t j = 0; j < c.n; ++j) {
      double sum, magnitude;
      c.SumOf(i, j, sum, magnitude);
      const int32_t nnz =
          c.packed.row_offsets[static_cast<size_t>(j + 1)] - c.packed.row_offsets[static_cast<size_t>(j)];
      const double got = double{y[static_cast<size_t>(i * c.n + j)]};
      CHECK_OR(std::fabs(got - sum) <= ((nnz + 31) / 32 + 5) * 0x1.01p-24 * magnitude, "%g, not %g", got, sum);
    }
}

// What the thread sanitizer looks at: several blocks and rows per warp.
TEST(RaceFree) { CheckSums("csr_s8", SparseCase(9, 70, 40, Thinning::kTenth, 3), LaunchS8); }

}  // namespace
}  // namespace tersor::testing

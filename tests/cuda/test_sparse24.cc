// sparse24_s8 and sparse24_f16 against the dense definitions, and their packers.
#include <cmath>

#include "sparse_case.h"

namespace tersor::testing {
namespace {

struct PackedS8 {
  std::vector<uint8_t> values, metadata;
  explicit PackedS8(const SparseCase& c) {
    const cuda::Sparse24Bytes bytes = cuda::PackedBytesSparse24S8(c.n, c.k);
    values.resize(static_cast<size_t>(bytes.values));
    metadata.resize(static_cast<size_t>(bytes.metadata));
    cuda::PackSparse24S8(c.n, c.k, c.w.data(), values.data(), metadata.data());
  }
};

int LaunchS8(const SparseCase& c, const cuda::Epilogue& epilogue) {
  const PackedS8 packed(c);
  auto args = ArgsOf<cuda::Sparse24Args>(c, epilogue);
  args.values = packed.values.data();
  args.metadata = packed.metadata.data();
  return cuda::Sparse24S8(args, nullptr);
}

const int64_t kShapes[][3] = {{1, 1, 1},     {1, 16, 64},   {3, 17, 65},   {8, 40, 256}, {9, 33, 130},
                              {33, 15, 600}, {64, 31, 192}, {65, 130, 70}, {129, 16, 64}};

TEST(Sparse24S8Sums) {
  for (const auto& s : kShapes)
    for (const Thinning thinning : {Thinning::kTwoOfFour, Thinning::kAll}) {
      if (Quick() && s[0] * s[1] > 3000) continue;
      CheckSums("sparse24_s8", SparseCase(s[0], s[1], s[2], thinning, 11), LaunchS8);
    }
}

TEST(Sparse24S8Extremes) {
  CheckSums("sparse24_s8", SparseCase(9, 20, 200, Thinning::kTwoOfFour, 5, Fill::kLowest), LaunchS8);
}

TEST(Sparse24S8Epilogues) {
  CheckEpilogues("sparse24_s8", SparseCase(5, 37, 100, Thinning::kTwoOfFour, 3), LaunchS8);
  CheckEpilogues("sparse24_s8", SparseCase(70, 19, 64, Thinning::kTwoOfFour, 4), LaunchS8);
}

TEST(Sparse24PacksAndUnpacks) {
  for (const auto& s : kShapes) {
    const SparseCase c(1, s[1], s[2], Thinning::kTwoOfFour, 7);
    const PackedS8 packed(c);
    std::vector<int8_t> back(c.w.size(), 99);
    cuda::UnpackSparse24S8(c.n, c.k, packed.values.data(), packed.metadata.data(), back.data());
    CHECK(back == c.w);
    std::vector<uint16_t> half(c.w.size()), half_back(c.w.size(), 99);
    for (size_t i = 0; i < half.size(); ++i) half[i] = FloatToHalf(DType::kF16, static_cast<float>(c.w[i]));
    const cuda::Sparse24Bytes bytes = cuda::PackedBytesSparse24F16(c.n, c.k);
    std::vector<uint8_t> values(static_cast<size_t>(bytes.values)), metadata(static_cast<size_t>(bytes.metadata));
    cuda::PackSparse24F16(c.n, c.k, half.data(), values.data(), metadata.data());
    cuda::UnpackSparse24F16(c.n, c.k, values.data(), metadata.data(), half_back.data());
    CHECK(half_back == half);
  }
  const SparseCase dense(1, 3, 9, Thinning::kNone, 8, Fill::kLowest);
  std::vector<uint8_t> values(4096), metadata(4096);
  const std::string error =
      ErrorOf([&] { cuda::PackSparse24S8(3, 9, dense.w.data(), values.data(), metadata.data()); });
  CHECK(Holds(error, "row 0") && Holds(error, "columns 0 to 3"));
  CHECK(Holds(ErrorOf([&] { cuda::PackedBytesSparse24S8(0, 4); }), "positive"));
}

// Small integers: every float32 sum is exact, in whatever order.
TEST(Sparse24F16) {
  for (const auto& s : kShapes) {
    if (Quick() && s[0] * s[1] > 3000) continue;
    SparseCase c(s[0], s[1], s[2], Thinning::kTwoOfFour, 13);
    std::vector<uint16_t> w(c.w.size()), a(c.a.size(), 0);
    for (size_t i = 0; i < w.size(); ++i) {
      c.w[i] = static_cast<int8_t>(c.w[i] % 16);
      w[i] = FloatToHalf(DType::kF16, static_cast<float>(c.w[i]));
    }
    for (size_t i = 0; i < a.size(); ++i) {
      c.a[i] = static_cast<uint8_t>(c.a[i] % 16);
      if (static_cast<int64_t>(i) % c.lda < c.k) a[i] = FloatToHalf(DType::kF16, static_cast<float>(c.a[i]));
    }
    const cuda::Sparse24Bytes bytes = cuda::PackedBytesSparse24F16(c.n, c.k);
    std::vector<uint8_t> values(static_cast<size_t>(bytes.values)), metadata(static_cast<size_t>(bytes.metadata));
    cuda::PackSparse24F16(c.n, c.k, w.data(), values.data(), metadata.data());
    const std::vector<int32_t> sums = c.Sums();
    for (const EpilogueKind& kind : kEpilogues) {
      EpilogueCase epilogue(kind, c.m, c.n, 1.0f / 64.0f, 21);
      cuda::Epilogue e = epilogue.Args(c.col_sum);
      if (kind.bias) e.row_scale = nullptr;
      auto args = ArgsOf<cuda::Sparse24Args>(c, e);
      args.a = a.data();
      args.values = values.data();
      args.metadata = metadata.data();
      CHECK(cuda::Sparse24F16(args, nullptr) == 0);
      std::vector<float> scaled(sums.size());
      for (size_t i = 0; i < sums.size(); ++i) {
        const size_t row = i / static_cast<size_t>(c.n), column = i % static_cast<size_t>(c.n);
        const float row_scale = kind.bias ? 1.0f : epilogue.row_scale[row];
        scaled[i] = static_cast<float>(sums[i]) * (row_scale * epilogue.col_scale[column]);
      }
      epilogue.Check("sparse24_f16", epilogue.Finish(scaled));
      if (s[0] * s[1] > 1000) break;
    }
  }
}

// The stream of weights is read once: 16 rows by 64 of k are 640 bytes. One sparse instruction per 8 tokens.
TEST(Sparse24S8Instructions) {
  emulate::counters = {};
  const SparseCase c(8, 64, 256, Thinning::kTwoOfFour, 17);
  CheckSums("sparse24_s8", c, LaunchS8);
  CHECK(emulate::counters.mma % (4 * 4) == 0 && emulate::counters.mma / (4 * 4) == (Quick() ? 1u : 3u));
  CHECK(emulate::counters.barriers == emulate::counters.blocks);
}

// What the thread sanitizer looks at: several tiles, tokens and warps that share a tile.
TEST(RaceFree) {
  CheckSums("sparse24_s8", SparseCase(9, 33, 130, Thinning::kTwoOfFour, 3), LaunchS8);
  CheckSums("sparse24_s8", SparseCase(65, 17, 65, Thinning::kTwoOfFour, 3), LaunchS8);
}

}  // namespace
}  // namespace tersor::testing

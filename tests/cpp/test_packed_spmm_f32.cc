// The sparse float packed weight: the way back, its size, and what a damaged block leads to.
#include <cstring>

#include "core/registry.h"
#include "ops/packed_spmm_f32.h"
#include "sparse_f32_cases.h"

namespace {

using tersor::PackedHeaderSpmmF32;
using tersor::PackedViewSpmmF32;
using tersor::testing::ErrorOf;
using tersor::testing::Holds;
using tersor::testing::kPatterns;
using tersor::testing::Pattern;
using tersor::testing::SparseF32Case;
using tersor::testing::UnderEachIsa;

void RoundTrip(const SparseF32Case& c) {
  const std::vector<char> packed = c.Pack();
  std::vector<float> w(c.w.size(), 99.0f);
  tersor::UnpackSpmmF32(packed.data(), packed.size(), w.data());
  CHECK_OR(w == c.w, "%s n=%d k=%d: the way back differs", tersor::ActiveIsa().c_str(), static_cast<int>(c.n),
           static_cast<int>(c.k));
  const tersor::PackedInfoSpmmF32 info = tersor::InspectPackedSpmmF32(packed.data(), packed.size());
  CHECK(info.n == c.n && info.k == c.k && info.nnz == c.Nnz() && info.runnable);
  CHECK(info.kernel == tersor::Selected().spmm_f32->id);
}

std::string UnpackError(const std::vector<char>& packed) {
  std::vector<float> w(70 * 500);
  return ErrorOf([&] { tersor::UnpackSpmmF32(packed.data(), packed.size(), w.data()); });
}

}  // namespace

TEST(RoundTripOfEveryPattern) {
  UnderEachIsa([] {
    uint64_t seed = 0;
    for (Pattern pattern : kPatterns)
      for (int64_t n : {1, 4, 17, 64, 65, 200})
        for (int64_t k : {1, 3, 16, 256, 257, 1000}) RoundTrip(SparseF32Case(1, n, k, pattern, ++seed));
  });
}

// 6 bytes a non-zero, and what evens out the groups stays small.
TEST(SizeFollowsTheNonZeros) {
  const SparseF32Case c(1, 768, 768, Pattern::kUnstructured, 4);
  const int64_t bytes = static_cast<int64_t>(c.Pack().size()), nnz = c.Nnz();
  CHECK_OR(bytes < 128 + 3 * 768 * 4 + nnz * 6 * 104 / 100, "%d bytes for %d non-zeros", static_cast<int>(bytes),
           static_cast<int>(nnz));
}

TEST(BadWeightsAreRefused) {
  const std::vector<float> w(20, 1.0f);
  std::vector<char> packed(4096);
  const auto error = [&](int64_t n, int64_t k) {
    return ErrorOf([&] { tersor::PackSpmmF32(n, k, w.data(), packed.data(), packed.size()); });
  };
  CHECK(Holds(error(0, 4), "n=0"));
  CHECK(Holds(error(5, -1), "k=-1"));
  CHECK(Holds(error(5, 4), "bytes needed"));
  CHECK(Holds(ErrorOf([] { tersor::PackedBytesSpmmF32(int64_t{1} << 31, 4, nullptr); }), "2147483648"));
}

TEST(DamagedBlocksAreRefused) {
  const std::vector<char> good = SparseF32Case(1, 70, 500, Pattern::kUnstructured, 3).Pack();
  CHECK(UnpackError(good).empty());
  for (size_t bytes : {size_t{0}, size_t{100}, sizeof(PackedHeaderSpmmF32), good.size() - 1})
    CHECK(!UnpackError(std::vector<char>(good.begin(), good.begin() + static_cast<std::ptrdiff_t>(bytes))).empty());
  const auto with = [&](auto damage) {
    std::vector<char> packed = good;
    damage(*reinterpret_cast<PackedHeaderSpmmF32*>(packed.data()));
    return UnpackError(packed);
  };
  CHECK(Holds(with([](auto& h) { h.magic[0] = 'X'; }), "not one"));
  CHECK(!with([](auto& h) { h.bytes += 64; }).empty());
  for (int64_t bad : {int64_t{-1}, int64_t{0}, int64_t{71 + 640}, int64_t{1} << 40, INT64_MAX}) {
    CHECK(!with([bad](auto& h) { h.n = bad; }).empty());
    CHECK(!with([bad](auto& h) { h.k = bad; }).empty());
    CHECK(!with([bad](auto& h) { h.steps = bad; }).empty());
  }
  CHECK(!with([](auto& h) { h.nnz = -1; }).empty());
  CHECK(Holds(with([](auto& h) { h.kernel_id[9] = '9'; }), "cannot run"));
  CHECK(!with([](auto& h) { std::memset(h.kernel_id, 'a', sizeof h.kernel_id); }).empty());
}

// The index cannot send a kernel outside of the block, of the panel or of the sums.
TEST(DamagedIndexIsHarmless) {
  UnderEachIsa([] {
    const SparseF32Case c(3, 70, 500, Pattern::kUnstructured, 3);
    const std::vector<char> good = c.Pack();
    std::vector<float> y(3 * 70);
    tersor::SpmmF32Args args{};
    args.x = c.x.data();
    args.ldx = 500;
    args.y = y.data();
    args.ldy = 70;
    const auto run = [&](auto damage) {
      std::vector<char> packed = good;
      damage(tersor::ViewPackedSpmmF32(packed.data(), packed.size()));
      args.packed = packed.data();
      args.packed_bytes = packed.size();
      std::string error;
      for (int64_t m : {1, 3}) {
        args.m = m;
        error += ErrorOf([&] { tersor::SpmmF32(args, tersor::SerialExecutor()); });
      }
      return error;
    };
    CHECK(run([](const PackedViewSpmmF32&) {}).empty());
    CHECK(Holds(run([](const PackedViewSpmmF32& v) { v.starts[0] = 1; }), "damaged"));
    CHECK(Holds(run([](const PackedViewSpmmF32& v) { v.starts[3] = v.steps + 1; }), "damaged"));
    CHECK(Holds(run([](const PackedViewSpmmF32& v) { v.starts[5] = -1; }), "damaged"));
    CHECK(Holds(run([](const PackedViewSpmmF32& v) { v.order[7] = 64; }), "damaged"));
    CHECK(Holds(run([](const PackedViewSpmmF32& v) { v.order[70] = 16; }), "damaged"));  // of a band of 16 rows
    CHECK(run([](const PackedViewSpmmF32& v) { v.offsets[2] = 65532; }).empty());        // within the panel's memory
    std::vector<char> packed = good;
    tersor::ViewPackedSpmmF32(packed.data(), packed.size()).offsets[0] = 65532;
    CHECK(Holds(UnpackError(packed), "damaged"));
  });
}

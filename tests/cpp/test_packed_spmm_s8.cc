// The sparse packed weight: the way back, its size, and what a damaged block leads to.
#include <cstring>

#include "core/registry.h"
#include "ops/packed_spmm_s8.h"
#include "sparse_cases.h"

namespace {

using tersor::PackedHeaderSpmmS8;
using tersor::PackedViewSpmmS8;
using tersor::testing::ErrorOf;
using tersor::testing::Holds;
using tersor::testing::kPatterns;
using tersor::testing::LinearCase;
using tersor::testing::PackSparse;
using tersor::testing::Pattern;
using tersor::testing::Thin;
using tersor::testing::UnderEachIsa;

int64_t QuadsOf(const LinearCase& c) {
  int64_t quads = 0;
  for (int64_t j = 0; j < c.n; ++j)
    for (int64_t p = 0; p < c.k; p += 4) {
      bool any = false;
      for (int64_t i = p; i < std::min(p + 4, c.k); ++i) any = any || c.w[static_cast<size_t>(j * c.k + i)] != 0;
      quads += any;
    }
  return quads;
}

void RoundTrip(const LinearCase& c) {
  const std::vector<char> packed = PackSparse(c);
  std::vector<int8_t> w(c.w.size(), 99);
  std::vector<float> scale(c.scale.size());
  tersor::UnpackSpmmS8(packed.data(), packed.size(), w.data(), scale.data());
  CHECK_OR(w == c.w && scale == c.scale, "%s n=%d k=%d: the way back differs", tersor::ActiveIsa().c_str(),
           static_cast<int>(c.n), static_cast<int>(c.k));
  const tersor::PackedInfoSpmmS8 info = tersor::InspectPackedSpmmS8(packed.data(), packed.size());
  CHECK(info.n == c.n && info.k == c.k && info.quads == QuadsOf(c) && info.runnable);
  CHECK(info.kernel == tersor::Selected().spmm_s8->id);
}

PackedHeaderSpmmS8& HeaderOf(std::vector<char>& packed) {
  return *reinterpret_cast<PackedHeaderSpmmS8*>(packed.data());
}

std::string UnpackError(const std::vector<char>& packed) {
  std::vector<int8_t> w(70 * 500);
  std::vector<float> scale(70);
  return ErrorOf([&] { tersor::UnpackSpmmS8(packed.data(), packed.size(), w.data(), scale.data()); });
}

std::string PackError(int64_t n, int64_t k, const std::vector<int8_t>& w, const std::vector<float>& scale,
                      const float* input_scale = nullptr) {
  return ErrorOf([&] {
    std::vector<char> packed(tersor::PackedBytesSpmmS8(n, k, w.data()));
    tersor::PackSpmmS8(n, k, w.data(), scale.data(), input_scale, packed.data(), packed.size());
  });
}

LinearCase Sparse(int64_t n, int64_t k) {
  LinearCase c(1, n, k, 3);
  Thin(Pattern::kUnstructured, 3, c);
  return c;
}

}  // namespace

TEST(RoundTripOfEveryPattern) {
  UnderEachIsa([] {
    uint64_t seed = 0;
    for (Pattern pattern : kPatterns)
      for (int64_t n : {1, 4, 17, 64, 65, 200})
        for (int64_t k : {1, 3, 4, 5, 384, 389, 1000}) {
          LinearCase c(1, n, k, ++seed);
          Thin(pattern, seed, c);
          RoundTrip(c);
        }
  });
}

// 6 bytes a quad, and what evens out the groups stays small.
TEST(SizeFollowsTheNonZeros) {
  LinearCase c(1, 768, 768, 4);
  Thin(Pattern::kQuads, 4, c);
  const std::vector<char> packed = PackSparse(c);
  const PackedHeaderSpmmS8& header = *reinterpret_cast<const PackedHeaderSpmmS8*>(packed.data());
  const int64_t quads = QuadsOf(c), bytes = static_cast<int64_t>(packed.size() - header.rows_bytes);
  CHECK_OR(bytes < 768 * 12 + 768 * 16 + quads * 6 * 110 / 100, "%d bytes for %d quads", static_cast<int>(bytes),
           static_cast<int>(quads));
  CHECK(bytes < 768 * 768 * 4 / 10);
  CHECK(header.rows_bytes < 768 * 768 * 4 / 10);  // 1/8 byte a weight, 1 byte a non-zero, and little more
}

// The pattern decides, where the instruction set has more than one form.
TEST(FormFollowsThePattern) {
  UnderEachIsa([] {
    const bool all = tersor::Selected().spmm_s8->multiply_columns != nullptr;
    const auto form = [](Pattern pattern) {
      LinearCase c(1, 300, 600, 4);
      Thin(pattern, 4, c);
      const std::vector<char> packed = PackSparse(c);
      return tersor::InspectPackedSpmmS8(packed.data(), packed.size()).form;
    };
    CHECK(form(Pattern::kQuads) == "quads" && form(Pattern::kFull) == "quads");
    CHECK(form(Pattern::kScatteredQuads) == (all ? "ordered quads" : "quads"));
    CHECK(form(Pattern::kUnstructured) == (all ? "columns" : "quads"));
  });
}

TEST(InputScaleIsInside) {
  LinearCase c = Sparse(5, 70);
  std::vector<char> packed = PackSparse(c);
  CHECK(tersor::InputScaleSpmmS8(packed.data(), packed.size()) == nullptr);
  c.Smooth(1);
  packed = PackSparse(c);
  const float* values = tersor::InputScaleSpmmS8(packed.data(), packed.size());
  CHECK(values != nullptr && std::equal(c.input_scale.begin(), c.input_scale.end(), values));
}

TEST(BadWeightsAreRefused) {
  const std::vector<int8_t> w(20, 1);
  const std::vector<float> scale(5, 1.0f);
  CHECK(PackError(5, 4, w, scale).empty());
  CHECK(Holds(PackError(0, 4, w, scale), "n=0"));
  CHECK(Holds(PackError(5, 0, w, scale), "k=0"));
  CHECK(Holds(PackError(5, tersor::kMaxDepthS8 + 1, w, scale), "65537"));
  for (float bad : {0.0f, -1.0f, INFINITY, NAN}) {
    const float input_scale[4] = {1.0f, 1.0f, bad, 1.0f};
    CHECK(Holds(PackError(5, 4, w, {1.0f, 1.0f, 1.0f, 1.0f, bad}), "scale[4]"));
    CHECK(Holds(PackError(5, 4, w, scale, input_scale), "input_scale[2]"));
  }
  std::vector<int8_t> lowest = w;
  lowest[13] = -128;
  CHECK(Holds(PackError(5, 4, lowest, scale), "-128"));
  std::vector<char> packed(tersor::PackedBytesSpmmS8(5, 4, w.data()) + 64);
  CHECK(Holds(ErrorOf([&] { tersor::PackSpmmS8(5, 4, w.data(), scale.data(), nullptr, packed.data(), packed.size()); }),
              "bytes needed"));
}

TEST(DamagedBlocksAreRefused) {
  const LinearCase c = Sparse(70, 500);
  const std::vector<char> good = PackSparse(c);
  CHECK(UnpackError(good).empty());
  for (size_t bytes : {size_t{0}, size_t{100}, sizeof(PackedHeaderSpmmS8), good.size() - 1})
    CHECK(!UnpackError(std::vector<char>(good.begin(), good.begin() + static_cast<std::ptrdiff_t>(bytes))).empty());
  const auto with = [&](auto damage) {
    std::vector<char> packed = good;
    damage(HeaderOf(packed));
    return UnpackError(packed);
  };
  CHECK(Holds(with([](auto& h) { h.magic[0] = 'X'; }), "not one"));
  CHECK(!with([](auto& h) { h.bytes += 64; }).empty());
  for (int64_t bad : {int64_t{-1}, int64_t{0}, int64_t{71 + 64}, int64_t{1} << 40, INT64_MAX}) {
    CHECK(!with([bad](auto& h) { h.n = bad; }).empty());
    CHECK(!with([bad](auto& h) { h.k = bad; }).empty());
    CHECK(!with([bad](auto& h) { h.steps = bad; }).empty());
  }
  CHECK(!with([](auto& h) { h.smoothed = 2; }).empty());
  CHECK(!with([](auto& h) { h.form = 3; }).empty());
  CHECK(!with([](auto& h) { h.form = h.form == 0; }).empty());  // other sizes follow from it
  CHECK(!with([](auto& h) { h.rows_bytes += 64; }).empty());
  CHECK(Holds(with([](auto& h) { h.kernel_id[9] = '9'; }), "cannot run"));
  CHECK(!with([](auto& h) { std::memset(h.kernel_id, 'a', sizeof h.kernel_id); }).empty());
}

// The index cannot send a kernel outside of the block, of the panel or of the sums.
TEST(DamagedIndexIsHarmless) {
  LinearCase c = Sparse(70, 500);
  const std::vector<char> good = PackSparse(c);
  std::vector<float> y(70);
  tersor::LinearS8Args args{};
  args.m = 1;
  args.x = c.x.data();
  args.ldx = args.ldy = 500;
  args.y = y.data();
  args.packed_bytes = good.size();
  const auto run = [&](auto damage) {
    std::vector<char> packed = good;
    damage(tersor::ViewPackedSpmmS8(packed.data(), packed.size()));
    args.packed = packed.data();
    return ErrorOf([&] { tersor::SpmmS8(args, tersor::SerialExecutor()); });
  };
  CHECK(run([](const PackedViewSpmmS8&) {}).empty());
  CHECK(Holds(run([](const PackedViewSpmmS8& v) { v.starts[0] = 1; }), "damaged"));
  CHECK(Holds(run([](const PackedViewSpmmS8& v) { v.starts[3] = v.steps + 1; }), "damaged"));
  CHECK(Holds(run([](const PackedViewSpmmS8& v) { v.starts[5] = -1; }), "damaged"));
  CHECK(Holds(run([](const PackedViewSpmmS8& v) { v.order[7] = 64; }), "damaged"));
  CHECK(run([](const PackedViewSpmmS8& v) { v.offsets[2] = 65535; }).empty());  // reads within the panel's memory
  if (tersor::ViewPackedSpmmS8(good.data(), good.size()).columns != nullptr)
    CHECK(
        Holds(run([](const PackedViewSpmmS8& v) { v.columns[1] = static_cast<uint16_t>(v.layout.depth); }), "damaged"));
  std::vector<char> packed = good;
  const PackedViewSpmmS8 view = tersor::ViewPackedSpmmS8(packed.data(), packed.size());
  view.offsets[0] = 65535;
  CHECK(Holds(UnpackError(packed), "damaged"));
}

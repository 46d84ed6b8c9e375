// The packed weight: packing in pieces, the way back, and what a damaged block leads to.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "check.h"
#include "gemm_cases.h"
#include "ops/packed_s8.h"
#include "tersor/isa.h"
#include "tersor/linear_s8.h"

namespace {

using tersor::testing::ErrorOf;
using tersor::testing::Fill;
using tersor::testing::Holds;
using tersor::testing::Random;

struct Weight {
  int64_t n, k;
  std::vector<int8_t> w;
  std::vector<float> scale;
  Weight(int64_t rows, int64_t depth, uint64_t seed) : n(rows), k(depth) {
    Random random(seed);
    w = tersor::testing::Weights(Fill::kRandom, n * k, random);
    for (int64_t i = 0; i < n; ++i) scale.push_back(random.Uniform(0.001f, 0.1f));
  }
  // `before` is what the memory held: nothing of it may be left.
  std::vector<char> Pack(int64_t block, char before = 'x') const {
    std::vector<char> packed(tersor::PackedBytesS8(n, k), before);
    tersor::PackBeginS8(n, k, packed.data(), packed.size());
    for (int64_t row = 0; row < n; row += block)
      tersor::PackRowsS8(row, std::min(block, n - row), w.data() + row * k, scale.data() + row, packed.data(),
                         packed.size());
    return packed;
  }
};

template <typename Body>
void UnderEachIsa(Body body) {
  for (const std::string& isa : tersor::AvailableIsas()) {
    tersor::SetIsaCap(isa);
    body();
    tersor::SetIsaCap("");
  }
}

void RoundTrip(int64_t n, int64_t k) {
  const Weight weight(n, k, static_cast<uint64_t>(n * 1000 + k));
  const std::vector<char> packed = weight.Pack(n);
  for (int64_t block : {int64_t{64}, int64_t{128}})
    CHECK_OR(packed == weight.Pack(block, '\0'), "%s n=%ld k=%ld: packing in blocks of %ld differs",
             tersor::ActiveIsa().c_str(), static_cast<long>(n), static_cast<long>(k), static_cast<long>(block));
  std::vector<int8_t> w(static_cast<size_t>(n * k), 99);
  std::vector<float> scale(static_cast<size_t>(n));
  for (int64_t row = 0; row < n; row += 64)
    tersor::UnpackRowsS8(row, std::min<int64_t>(64, n - row), packed.data(), packed.size(), w.data() + row * k,
                         scale.data() + row);
  CHECK_OR(w == weight.w && scale == weight.scale, "%s n=%ld k=%ld: the way back differs", tersor::ActiveIsa().c_str(),
           static_cast<long>(n), static_cast<long>(k));
  const tersor::PackedInfoS8 info = tersor::InspectPackedS8(packed.data(), packed.size());
  CHECK(info.n == n && info.k == k && info.runnable);
  const tersor::PackedShapeS8 shape = tersor::ShapeOfPackedS8(packed.data(), packed.size());
  CHECK(shape.n == n && shape.k == k);
}

std::string PackError(int64_t row, int64_t rows, const int8_t* w, const float* scale) {
  std::vector<char> packed(tersor::PackedBytesS8(100, 4));
  tersor::PackBeginS8(100, 4, packed.data(), packed.size());
  return ErrorOf([&] { tersor::PackRowsS8(row, rows, w, scale, packed.data(), packed.size()); });
}

std::string ViewError(const std::vector<char>& packed) {
  const std::string view = ErrorOf([&] { tersor::ViewPackedS8(packed.data(), packed.size()); });
  std::vector<int8_t> w(1000);
  std::vector<float> scale(100);
  const std::string unpack =
      ErrorOf([&] { tersor::UnpackRowsS8(0, 0, packed.data(), packed.size(), w.data(), scale.data()); });
  CHECK_OR(view == unpack, "view: %s; unpack: %s", view.c_str(), unpack.c_str());
  return view;
}

tersor::PackedHeaderS8& HeaderOf(std::vector<char>& packed) {
  return *reinterpret_cast<tersor::PackedHeaderS8*>(packed.data());
}

}  // namespace

TEST(RoundTripOfAwkwardShapes) {
  UnderEachIsa([] {
    for (int64_t n : {1, 15, 16, 17, 63, 64, 65, 200})
      for (int64_t k : {1, 3, 4, 5, 64, 129}) RoundTrip(n, k);
    RoundTrip(3, tersor::kMaxDepthS8);
    RoundTrip(3, tersor::kMaxDepthS8 + 1);
    RoundTrip(2, 2 * tersor::kMaxDepthS8 + 77);
  });
}

// A block that moves, to any address that holds an int64, is still the same weight.
TEST(BlockIsRelocatable) {
  UnderEachIsa([] {
    const Weight weight(70, 33, 5);
    const std::vector<char> packed = weight.Pack(64);
    std::vector<char> room(packed.size() + 128);
    for (size_t shift : {8u, 16u, 40u}) {
      char* moved = room.data() + shift;
      std::memcpy(moved, packed.data(), packed.size());
      std::vector<int8_t> w(weight.w.size());
      std::vector<float> scale(weight.scale.size());
      tersor::UnpackRowsS8(0, 70, moved, packed.size(), w.data(), scale.data());
      CHECK(w == weight.w && scale == weight.scale);
    }
  });
}

TEST(PackedUnderOneIsaIsReadUnderAnother) {
  const Weight weight(37, 50, 6);
  UnderEachIsa([&] {
    const std::vector<char> packed = weight.Pack(64);
    const std::string kernel = tersor::InspectPackedS8(packed.data(), packed.size()).kernel;
    UnderEachIsa([&] {
      std::vector<int8_t> w(weight.w.size());
      std::vector<float> scale(weight.scale.size());
      tersor::UnpackRowsS8(0, 37, packed.data(), packed.size(), w.data(), scale.data());
      CHECK_OR(w == weight.w, "%s read under %s", kernel.c_str(), tersor::ActiveIsa().c_str());
    });
  });
}

TEST(ExtentsAreChecked) {
  for (int64_t bad : {int64_t{0}, int64_t{-1}, int64_t{1} << 31}) {
    CHECK(Holds(ErrorOf([&] { tersor::PackedBytesS8(bad, 4); }), std::to_string(bad)));
    CHECK(Holds(ErrorOf([&] { tersor::PackedBytesS8(4, bad); }), std::to_string(bad)));
  }
  std::vector<char> small(100);
  CHECK(Holds(ErrorOf([&] { tersor::PackBeginS8(4, 4, small.data(), small.size()); }), "bytes needed, got 100"));
}

TEST(RowsAndValuesAreChecked) {
  std::vector<int8_t> w(400, 1);
  std::vector<float> scale(100, 1.0f);
  CHECK(PackError(0, 64, w.data(), scale.data()).empty());
  CHECK(PackError(64, 36, w.data(), scale.data()).empty());
  CHECK(PackError(0, 100, w.data(), scale.data()).empty());
  CHECK(Holds(PackError(1, 64, w.data(), scale.data()), "multiples of 64"));
  CHECK(Holds(PackError(0, 63, w.data(), scale.data()), "multiples of 64"));
  CHECK(Holds(PackError(64, 37, w.data(), scale.data()), "of 100"));
  CHECK(Holds(PackError(-64, 64, w.data(), scale.data()), "of 100"));
  CHECK(Holds(PackError(128, 0, w.data(), scale.data()), "of 100"));
  w[255] = -128;
  CHECK(Holds(PackError(0, 64, w.data(), scale.data()), "-128"));
  w[255] = -127;
  for (float bad : {0.0f, -1.0f, std::nanf(""), std::numeric_limits<float>::infinity()}) {
    scale[7] = bad;
    CHECK(Holds(PackError(0, 64, w.data(), scale.data()), "scale of row 7"));
  }
}

TEST(InputScaleIsCarriedAlong) {
  UnderEachIsa([] {
    for (int64_t k : {1, 15, 16, 17, 100}) {
      const Weight weight(70, k, 9);
      std::vector<char> packed = weight.Pack(64);
      const std::vector<char> plain = packed;
      CHECK(tersor::InputScaleS8(packed.data(), packed.size()) == nullptr);
      std::vector<float> input_scale;
      for (int64_t i = 0; i < k; ++i) input_scale.push_back(1.0f / static_cast<float>(i + 1));
      tersor::SetInputScaleS8(input_scale.data(), packed.data(), packed.size());
      const float* found = tersor::InputScaleS8(packed.data(), packed.size());
      CHECK(found != nullptr && std::equal(input_scale.begin(), input_scale.end(), found));
      std::vector<int8_t> w(weight.w.size());
      std::vector<float> scale(weight.scale.size());
      tersor::UnpackRowsS8(0, 70, packed.data(), packed.size(), w.data(), scale.data());
      CHECK(w == weight.w && scale == weight.scale);
      // Rows that come after it, as a layer packs them, give the same block.
      std::vector<char> other(packed.size());
      tersor::PackBeginS8(70, k, other.data(), other.size());
      tersor::SetInputScaleS8(input_scale.data(), other.data(), other.size());
      tersor::PackRowsS8(0, 70, weight.w.data(), weight.scale.data(), other.data(), other.size());
      CHECK(other == packed);
      tersor::SetInputScaleS8(nullptr, packed.data(), packed.size());
      CHECK(tersor::InputScaleS8(packed.data(), packed.size()) == nullptr);
      CHECK(packed == plain);
    }
  });
}

TEST(InputScaleIsChecked) {
  std::vector<char> packed = Weight(9, 10, 7).Pack(64);
  std::vector<float> input_scale(10, 0.5f);
  for (float bad : {0.0f, -0.0f, -1.0f, std::nanf(""), std::numeric_limits<float>::infinity()}) {
    input_scale[7] = bad;
    CHECK(Holds(ErrorOf([&] { tersor::SetInputScaleS8(input_scale.data(), packed.data(), packed.size()); }),
                "input scale of column 7"));
  }
  CHECK(!ErrorOf([&] { tersor::SetInputScaleS8(input_scale.data(), packed.data(), packed.size() - 1); }).empty());
  CHECK(!ErrorOf([&] { tersor::InputScaleS8(packed.data(), packed.size() - 1); }).empty());
  HeaderOf(packed).smoothed = 2;
  CHECK(Holds(ViewError(packed), "smoothed"));
}

TEST(DamagedBlocksAreRefused) {
  const std::vector<char> good = Weight(9, 10, 7).Pack(64);
  CHECK(ViewError(good).empty());
  std::vector<char> bad = good;
  bad[0] = 'X';
  CHECK(Holds(ViewError(bad), "not one"));
  for (size_t bytes : {size_t{0}, size_t{1}, sizeof(tersor::PackedHeaderS8) - 1, good.size() - 1})
    CHECK(!ViewError(std::vector<char>(good.begin(), good.begin() + static_cast<int64_t>(bytes))).empty());
  bad = good;
  bad.push_back(0);
  CHECK(Holds(ViewError(bad), "got"));
  bad = good;
  HeaderOf(bad).n = int64_t{1} << 30;  // a size that the bytes do not bear out
  CHECK(Holds(ViewError(bad), "bytes needed"));
  bad = good;
  HeaderOf(bad).k = -5;
  CHECK(!ViewError(bad).empty());
  bad = good;
  std::memset(HeaderOf(bad).kernel_id, 'z', sizeof(HeaderOf(bad).kernel_id));  // no end of string
  CHECK(!ViewError(bad).empty());
  CHECK(!ErrorOf([] { tersor::InspectPackedS8(nullptr, 1000); }).empty());
  std::vector<char> moved(good.size() + 1);
  std::memcpy(moved.data() + 1, good.data(), good.size());
  CHECK(Holds(ErrorOf([&] { tersor::InspectPackedS8(moved.data() + 1, good.size()); }), "multiple of 8"));
  CHECK(Holds(ErrorOf([&] { tersor::PackBeginS8(9, 10, moved.data() + 1, good.size()); }), "multiple of 8"));
}

TEST(ForeignKernelIsNamed) {
  std::vector<char> packed = Weight(9, 10, 8).Pack(64);
  std::memset(HeaderOf(packed).kernel_id, 0, sizeof(HeaderOf(packed).kernel_id));
  std::strcpy(HeaderOf(packed).kernel_id, "gemm_s8_9x9_riscv");
  CHECK(Holds(ViewError(packed), "gemm_s8_9x9_riscv"));
  const tersor::PackedInfoS8 info = tersor::InspectPackedS8(packed.data(), packed.size());
  CHECK(!info.runnable && info.kernel == "gemm_s8_9x9_riscv" && info.n == 9 && info.k == 10);
}

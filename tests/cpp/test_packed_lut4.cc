// The packed code book weight: the way back, its size, and what a damaged block or a bad weight leads to.
#include <cstring>

#include "lut4_cases.h"
#include "ops/packed_lut4.h"

namespace {

using tersor::Lut4Spec;
using tersor::testing::ErrorOf;
using tersor::testing::Holds;
using tersor::testing::Lut4Case;
using tersor::testing::Tables;

void RoundTrip(const Lut4Case& c) {
  const std::vector<char> packed = c.PackCodes();
  std::vector<uint8_t> codes(c.codes.size());
  std::vector<int8_t> table(c.table.size());
  std::vector<float> scale(c.group_scale.size()), input_scale(c.input_scale.size());
  tersor::UnpackLut4(packed.data(), packed.size(), codes.data(), table.data(), scale.data(),
                     input_scale.empty() ? nullptr : input_scale.data());
  CHECK(table == c.table && scale == c.group_scale && input_scale == c.input_scale);
  Lut4Case back = c;
  back.codes = codes;
  back.Look();
  CHECK_OR(back.w == c.w, "bits=%d: the codes stand for other values", c.spec.bits);
  CHECK(c.spec.bits > 4 || codes == c.codes);
  CHECK(back.PackCodes() == packed);
  const tersor::PackedInfoLut4 info = tersor::InspectPackedLut4(packed.data(), packed.size());
  CHECK(info.n == c.n && info.k == c.k && info.spec.bits == c.spec.bits && info.spec.group == c.spec.group);
  CHECK(info.smoothed == !c.input_scale.empty() && info.kernel == tersor::Selected().lut4->id);
}

std::string PackError(const Lut4Case& c) {
  return ErrorOf([&] { (void)c.PackCodes(); });
}

}  // namespace

TEST(TheWayBack) {
  uint64_t seed = 1;
  for (int32_t bits = 2; bits <= 8; ++bits)
    for (int64_t n : {1, 16, 37})
      for (int64_t k : {1, 33, 200})
        for (Tables tables : {Tables::kOne, Tables::kPerRow, Tables::kPerGroup}) {
          ++seed;
          Lut4Case c(1, n, k, bits, seed % 3 == 0 ? 0 : 64, tables, seed);
          if (seed % 2 == 0) c.Smooth(seed);
          RoundTrip(c);
        }
}

// Half a byte a weight, and 8 bytes a group.
TEST(Size) {
  const Lut4Spec whole{1024, 4096, 0, 4, 1, 1}, grouped{1024, 4096, 64, 4, 1, 1};
  const double weights = 1024.0 * 4096.0;
  CHECK(static_cast<double>(tersor::PackedBytesLut4(whole)) < weights * 0.5 * 1.03);
  CHECK(static_cast<double>(tersor::PackedBytesLut4(grouped)) < weights * (0.5 + 8.0 / 64.0) * 1.03);
}

TEST(BadWeightsAreRefused) {
  const Lut4Case good(1, 5, 70, 3, 32, Tables::kOne, 3);
  const auto error = [&](auto change) {
    Lut4Case c = good;
    change(c);
    return PackError(c);
  };
  CHECK(error([](Lut4Case&) {}).empty());
  CHECK(Holds(error([](Lut4Case& c) { c.codes[9] = 8; }), "code 8 does not fit 3 bits"));
  CHECK(Holds(error([](Lut4Case& c) { c.table[7] = -128; }), "-128"));
  CHECK(Holds(error([](Lut4Case& c) { c.group_scale[14] = 0.0f; }), "scale 14"));
  CHECK(Holds(error([](Lut4Case& c) { c.group_scale[0] = INFINITY; }), "finite"));
  CHECK(Holds(error([](Lut4Case& c) { c.input_scale.assign(70, -1.0f); }), "input scale 0"));
  for (int64_t group : {-32, 16, 33, 65568})
    CHECK(Holds(error([group](Lut4Case& c) { c.spec.group = group; }), "multiple of 32"));
  for (int32_t bits : {1, 9}) CHECK(Holds(error([bits](Lut4Case& c) { c.spec.bits = bits; }), "bits"));
  CHECK(Holds(error([](Lut4Case& c) { c.spec.table_rows = 2; }), "one table"));
  CHECK(Holds(error([](Lut4Case& c) { c.spec.table_groups = 3; }), "one table"));
  CHECK(Holds(error([](Lut4Case& c) { c.spec.n = 0; }), "n=0"));
}

TEST(DamagedBlocksAreRefused) {
  const std::vector<char> packed = Lut4Case(1, 20, 70, 4, 32, Tables::kPerRow, 3).PackCodes();
  const auto error = [&](size_t at, char value) {
    std::vector<char> damaged = packed;
    damaged[at] = value;
    return ErrorOf([&] { tersor::ViewPackedLut4(damaged.data(), damaged.size()); });
  };
  CHECK(Holds(error(0, 'x'), "not one"));
  CHECK(Holds(error(offsetof(tersor::PackedHeaderLut4, bytes), 1), "header says"));
  for (size_t at = offsetof(tersor::PackedHeaderLut4, spec); at < offsetof(tersor::PackedHeaderLut4, zeros); ++at)
    for (int value : {0, 1, 3, 127, -1}) {
      std::vector<char> damaged = packed;
      damaged[at] = static_cast<char>(value);
      if (damaged == packed) continue;
      const std::string message = ErrorOf([&] {
        // What is still accepted has the same size and runs within it.
        tersor::ViewPackedLut4(damaged.data(), damaged.size());
        std::vector<float> x(1 << 12), y(1 << 12);
        tersor::LinearS8Args args{};
        args.m = 1;
        args.x = x.data();
        args.packed = damaged.data();
        args.packed_bytes = damaged.size();
        args.y = y.data();
        tersor::LinearLut4(args, tersor::SerialExecutor());
      });
      CHECK(message.empty() || Holds(message, "packed code book weight"));
    }
  CHECK(Holds(ErrorOf([&] { tersor::ViewPackedLut4(packed.data(), 100); }), "too few"));
  CHECK(Holds(ErrorOf([&] { tersor::ViewPackedLut4(packed.data() + 1, packed.size() - 1); }), "address"));
}

// The packed low-rank weights: the way back, and what a damaged block leads to.
#include <cstring>

#include "lowrank_cases.h"
#include "ops/packed_lowrank_f32.h"
#include "ops/packed_lowrank_s8.h"

namespace {

using tersor::PackedHeaderLowRankF32;
using tersor::PackedHeaderLowRankS8;
using tersor::testing::ErrorOf;
using tersor::testing::Holds;
using tersor::testing::LowRankCase;
using tersor::testing::UnderEachIsa;

void RoundTripF32(const LowRankCase& c) {
  const std::vector<char> packed = c.PackF32();
  std::vector<float> down(c.down.size()), up(c.up.size());
  tersor::UnpackLowRankF32(packed.data(), packed.size(), down.data(), up.data());
  CHECK(down == c.down && up == c.up);
  const tersor::PackedInfoLowRank info = tersor::InspectPackedLowRankF32(packed.data(), packed.size());
  CHECK(info.n == c.n && info.k == c.k && info.rank == c.rank && !info.dense && info.runnable);
  CHECK(info.kernel == tersor::Selected().gemm_f32->id);
}

void RoundTripS8(const LowRankCase& c) {
  const std::vector<char> packed = c.PackS8();
  std::vector<int8_t> down(c.down_s8.w.size()), up(c.up_s8.w.size()), dense(c.w.size());
  std::vector<float> down_scale(down.size()), up_scale(up.size()), dense_scale(dense.size());
  tersor::UnpackLowRankS8(packed.data(), packed.size(), down.data(), down_scale.data(), up.data(), up_scale.data(),
                          dense.data(), dense_scale.data());
  down_scale.resize(c.down_s8.scale.size());
  up_scale.resize(c.up_s8.scale.size());
  dense_scale.resize(c.scale.size());
  CHECK(down == c.down_s8.w && down_scale == c.down_s8.scale && up == c.up_s8.w && up_scale == c.up_s8.scale);
  if (c.with_dense) CHECK(dense == c.w && dense_scale == c.scale);
  const tersor::PackedInfoLowRank info = tersor::InspectPackedLowRankS8(packed.data(), packed.size());
  CHECK(info.n == c.n && info.k == c.k && info.rank == c.rank && info.dense == c.with_dense && info.runnable);
  CHECK(info.kernel == tersor::Selected().gemm_s8->id);
  const float* input_scale = tersor::InputScaleLowRankS8(packed.data(), packed.size());
  CHECK((input_scale == nullptr) == c.input_scale.empty());
  if (input_scale != nullptr) CHECK(std::vector<float>(input_scale, input_scale + c.k) == c.input_scale);
}

std::string RunError(const LowRankCase& c, const std::vector<char>& packed, const tersor::testing::LinearOp& op) {
  std::vector<float> y(static_cast<size_t>(c.m * c.n));
  tersor::LinearS8Args args{};
  args.m = c.m;
  args.x = c.x.data();
  args.ldx = c.k;
  args.packed = packed.data();
  args.packed_bytes = packed.size();
  args.y = y.data();
  args.ldy = c.n;
  return ErrorOf([&] { op.run(args, tersor::SerialExecutor()); });
}

// Every field of a header, and of the headers inside, damaged in turn: an error or the same shape, never a fault.
template <typename Header>
void DamageFields(const LowRankCase& c, const std::vector<char>& packed, const tersor::testing::LinearOp& op,
                  size_t first) {
  for (size_t at = first; at < first + sizeof(Header); at += 8)
    for (int64_t value : {int64_t{0}, int64_t{-1}, int64_t{1}, int64_t{64}, int64_t{1} << 40, INT64_MAX}) {
      std::vector<char> bad = packed;
      std::memcpy(bad.data() + at, &value, sizeof value);
      if (bad != packed) RunError(c, bad, op);
    }
}

}  // namespace

TEST(RoundTrips) {
  UnderEachIsa([] {
    uint64_t seed = 0;
    for (int64_t n : {1, 4, 33, 100})
      for (int64_t k : {1, 3, 64, 65})
        for (int64_t rank : {1, 3, 33}) {
          if (rank > std::min(n, k)) continue;
          LowRankCase c(1, n, k, rank, ++seed);
          RoundTripF32(c);
          c.with_dense = seed % 2 == 0;
          if (seed % 3 == 0) c.Smooth(seed);
          RoundTripS8(c);
        }
  });
}

TEST(BadWeightsAreRefused) {
  const std::vector<float> w(64, 1.0f);
  std::vector<char> packed(4096);
  const auto error = [&](int64_t n, int64_t k, int64_t rank) {
    return ErrorOf([&] { tersor::PackLowRankF32(n, k, rank, w.data(), w.data(), packed.data(), packed.size()); });
  };
  CHECK(Holds(error(0, 4, 1), "n=0"));
  CHECK(Holds(error(4, int64_t{1} << 31, 1), "k=2147483648"));
  CHECK(Holds(error(4, 4, 5), "rank=5"));
  CHECK(Holds(error(4, 4, 0), "rank=0"));
  CHECK(Holds(error(4, 4, 2), "bytes needed, got 4096"));
  CHECK(Holds(ErrorOf([] { tersor::PackedBytesLowRankS8(4, 65537, 2, false); }), "k=65537"));
  CHECK(Holds(ErrorOf([] { tersor::PackedBytesLowRankS8(4, 8, 5, true); }), "rank=5"));
  LowRankCase c(1, 4, 4, 2, 1);
  c.down_s8.w[3] = -128;
  CHECK(Holds(ErrorOf([&] { c.PackS8(); }), "-128"));
  c = LowRankCase(1, 4, 4, 2, 1);
  c.up_s8.scale[1] = 0.0f;
  CHECK(Holds(ErrorOf([&] { c.PackS8(); }), "scale"));
}

TEST(DamagedBlocksAreRefused) {
  LowRankCase c(3, 20, 30, 10, 1);
  c.with_dense = true;
  const std::vector<char> f32 = c.PackF32(), s8 = c.PackS8();
  const auto cut = [](std::vector<char> bytes, size_t size) { return bytes.resize(size), bytes; };
  for (size_t size : {size_t{0}, size_t{7}, size_t{127}, size_t{128}, size_t{500}}) {
    CHECK(Holds(RunError(c, cut(f32, size), tersor::testing::kLowRankF32), "packed low-rank float weight"));
    CHECK(Holds(RunError(c, cut(s8, size), tersor::testing::kLowRankS8), "packed low-rank int8 weight"));
  }
  std::vector<char> foreign = f32;
  std::memcpy(foreign.data() + offsetof(PackedHeaderLowRankF32, kernel_id), "gemm_f32_9x9_none\0", 18);
  CHECK(Holds(RunError(c, foreign, tersor::testing::kLowRankF32), "this CPU cannot run"));
  std::vector<char> moved = s8;
  PackedHeaderLowRankS8 header;
  std::memcpy(&header, moved.data(), sizeof header);
  header.rank = 9;
  std::memcpy(moved.data(), &header, sizeof header);
  CHECK(Holds(RunError(c, moved, tersor::testing::kLowRankS8), "down: expected n=9"));
  DamageFields<PackedHeaderLowRankF32>(c, f32, tersor::testing::kLowRankF32, 0);
  DamageFields<PackedHeaderLowRankS8>(c, s8, tersor::testing::kLowRankS8, 0);
  DamageFields<tersor::PackedHeaderS8>(c, s8, tersor::testing::kLowRankS8, sizeof(PackedHeaderLowRankS8));
}

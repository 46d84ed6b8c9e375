// bitmap_s8 and block_s8 against the dense definition, and their packers.
#include "sparse_case.h"

namespace tersor::testing {
namespace {

struct Bitmap {
  std::vector<uint32_t> bitmap;
  std::vector<int8_t> values;
  std::vector<int32_t> offsets;
  explicit Bitmap(const SparseCase& c) {
    const cuda::BitmapBytes bytes = cuda::PackedBytesBitmapS8(c.n, c.k, c.w.data());
    bitmap.resize(static_cast<size_t>(bytes.bitmap / 4));
    values.resize(static_cast<size_t>(bytes.values));
    offsets.resize(static_cast<size_t>(bytes.offsets / 4));
    cuda::PackBitmapS8(c.n, c.k, c.w.data(), bitmap.data(), values.data(), offsets.data());
  }
};
int LaunchBitmap(const SparseCase& c, const cuda::Epilogue& epilogue) {
  const Bitmap packed(c);
  auto args = ArgsOf<cuda::BitmapS8Args>(c, epilogue);
  args.bitmap = packed.bitmap.data();
  args.values = packed.values.data();
  args.offsets = packed.offsets.data();
  return cuda::BitmapS8(args, nullptr);
}

struct Blocks {
  std::vector<int8_t> values;
  std::vector<int32_t> row_offsets, column_indices;
  explicit Blocks(const SparseCase& c) {
    const size_t count = static_cast<size_t>(cuda::CountBlocksS8(c.n, c.k, c.w.data()));
    values.resize(count * 512);
    column_indices.resize(count);
    row_offsets.resize(static_cast<size_t>((c.n + 15) / 16 + 1));
    cuda::PackBlockS8(c.n, c.k, c.w.data(), values.data(), row_offsets.data(), column_indices.data());
  }
};
int LaunchBlocks(const SparseCase& c, const cuda::Epilogue& epilogue) {
  const Blocks packed(c);
  auto args = ArgsOf<cuda::BlockS8Args>(c, epilogue);
  args.values = packed.values.data();
  args.row_offsets = packed.row_offsets.data();
  args.column_indices = packed.column_indices.data();
  return cuda::BlockS8(args, nullptr);
}

const int64_t kShapes[][3] = {{1, 1, 1},    {1, 16, 64},   {3, 17, 65}, {8, 40, 640},
                              {9, 33, 130}, {33, 15, 300}, {65, 70, 70}};
const Thinning kThinnings[] = {Thinning::kNone,      Thinning::kTwoOfFour, Thinning::kHalf, Thinning::kTenth,
                               Thinning::kHundredth, Thinning::kOneRow,    Thinning::kAll};

template <typename Launch>
void CheckShapes(const char* what, Launch launch) {
  int round = 0;
  for (const auto& s : kShapes)
    for (const Thinning thinning : kThinnings) {
      if (++round % 3 != 0 && (Quick() || s[0] > 8)) continue;
      CheckSums(what, SparseCase(s[0], s[1], s[2], thinning, 11), launch);
    }
  CheckSums(what, SparseCase(9, 20, 200, Thinning::kHalf, 5, Fill::kLowest), launch);
}

TEST(BitmapSums) { CheckShapes("bitmap_s8", LaunchBitmap); }
TEST(BlockSums) { CheckShapes("block_s8", LaunchBlocks); }
TEST(BitmapEpilogues) {
  CheckEpilogues("bitmap_s8", SparseCase(5, 37, 100, Thinning::kHalf, 3), LaunchBitmap);
  CheckEpilogues("bitmap_s8", SparseCase(40, 19, 64, Thinning::kTenth, 4), LaunchBitmap);
}
TEST(BlockEpilogues) {
  CheckEpilogues("block_s8", SparseCase(5, 37, 100, Thinning::kHundredth, 3), LaunchBlocks);
  CheckEpilogues("block_s8", SparseCase(40, 19, 64, Thinning::kOneRow, 4), LaunchBlocks);
}

TEST(PackAndUnpack) {
  for (const auto& s : kShapes)
    for (const Thinning thinning : kThinnings) {
      const SparseCase c(1, s[1], s[2], thinning, 7);
      std::vector<int8_t> back(c.w.size(), 99);
      const Bitmap bitmap(c);
      cuda::UnpackBitmapS8(c.n, c.k, bitmap.bitmap.data(), bitmap.values.data(), bitmap.offsets.data(), back.data());
      CHECK(back == c.w);
      back.assign(c.w.size(), 99);
      const Blocks blocks(c);
      cuda::UnpackBlockS8(c.n, c.k, blocks.values.data(), blocks.row_offsets.data(), blocks.column_indices.data(),
                          back.data());
      CHECK(back == c.w);
      CHECK(blocks.column_indices.size() <= static_cast<size_t>((c.n + 15) / 16 * ((c.k + 31) / 32)));
    }
}

// Half of the weights: as many bytes as 2:4 needs for values and metadata, but for the ends of tiles.
TEST(BitmapBytes) {
  const SparseCase c(1, 256, 1024, Thinning::kHalf, 9);
  const cuda::BitmapBytes bytes = cuda::PackedBytesBitmapS8(c.n, c.k, c.w.data());
  const int64_t weights = c.n * c.k, total = bytes.bitmap + bytes.values + bytes.offsets;
  CHECK_OR(total > weights * 62 / 100 && total < weights * 66 / 100, "%ld bytes", long{total});
}

// Two dense instructions per step of a bitmap, whatever is in it; one per block that is there.
TEST(Instructions) {
  const uint64_t rounds = Quick() ? 1 : 3;
  emulate::counters = {};
  CheckSums("bitmap_s8", SparseCase(8, 32, 128, Thinning::kHundredth, 17), LaunchBitmap);
  CHECK(emulate::counters.mma == rounds * 2 * 2 * 2);
  emulate::counters = {};
  CheckSums("block_s8", SparseCase(8, 32, 128, Thinning::kOneRow, 17), LaunchBlocks);
  CHECK(emulate::counters.mma == rounds * 4);
}

// What the thread sanitizer looks at: several tiles, tokens and warps that share a tile.
TEST(BitmapRaceFree) { CheckSums("bitmap_s8", SparseCase(9, 33, 600, Thinning::kHalf, 3), LaunchBitmap); }
TEST(BlockRaceFree) { CheckSums("block_s8", SparseCase(9, 33, 300, Thinning::kTenth, 3), LaunchBlocks); }

}  // namespace
}  // namespace tersor::testing

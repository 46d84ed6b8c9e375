#include "dense_case.h"
#include "emulation.h"
#include "kernels/cuda/tile_config.cuh"

namespace tersor::testing {
namespace {

constexpr int kFewRows = -1;  // the kernel for few rows, which the launcher takes up to 16

struct Run {
  int tile, splits;
  uint32_t schedule;
};

// A workspace of any size that a case needs, always left as it was found: zeros in front.
class Workspace {
 public:
  Workspace() : bytes_(int64_t{4} << 20, 0) {}
  void* data() { return bytes_.data(); }
  int64_t size() const { return static_cast<int64_t>(bytes_.size()); }
  bool CountersAreZero() const {
    for (size_t i = 0; i < cuda::kMaxSplitTiles * 4; ++i)
      if (bytes_[i] != 0) return false;
    return true;
  }

 private:
  std::vector<uint8_t> bytes_;
};

cuda::GemmS8Args ArgsOf(const DenseCase& c, const Run& run, Workspace& workspace) {
  cuda::GemmS8Args args = {};
  args.m = c.m, args.n = c.n, args.k = c.k;
  args.a = c.a.data();
  args.lda = c.lda;
  args.packed = c.packed.data();
  args.workspace = workspace.data();
  args.workspace_bytes = workspace.size();
  args.tile = run.tile;
  args.splits = run.splits;
  return args;
}

void CheckSums(const DenseCase& c, const Run& run) {
  static Workspace workspace;
  const std::vector<int32_t> want = c.Sums();
  std::vector<int32_t> got(want.size(), INT32_MIN);
  cuda::GemmS8Args args = ArgsOf(c, run, workspace);
  args.epilogue.sums = got.data();
  args.epilogue.ldy = c.n;
  emulate::SetSchedule(run.schedule);
  CHECK(cuda::GemmS8(args, nullptr) == 0);
  CHECK(workspace.CountersAreZero());
  for (size_t i = 0; i < want.size() && !TooManyFailures(); ++i)
    CHECK_OR(got[i] == want[i], "tile %d splits %d m=%ld n=%ld k=%ld [%zu] is %d, not %d", run.tile, run.splits,
             long{c.m}, long{c.n}, long{c.k}, i, got[i], want[i]);
}

void CheckEpilogue(const EpilogueKind& kind, int64_t m, int64_t n, int64_t gap, const Run& run, uint64_t seed) {
  static Workspace workspace;
  const DenseCase c(m, n, 100, Fill::kRandom, seed);
  EpilogueCase epilogue(kind, m, n, 1e-2f, seed, gap);
  cuda::GemmS8Args args = ArgsOf(c, run, workspace);
  args.epilogue = epilogue.Args(c.col_sum);
  emulate::SetSchedule(run.schedule);
  CHECK(cuda::GemmS8(args, nullptr) == 0);
  epilogue.Check("gemm_s8", epilogue.Expected(c.Sums(), c.col_sum));
}

std::vector<int64_t> Around(int64_t tile) {
  return Quick() ? std::vector<int64_t>{tile + 1} : std::vector<int64_t>{1, tile - 3, tile, tile + 1};
}

}  // namespace

TEST(PackAndBack) {
  for (const int64_t n : {1, 15, 16, 17, 50})
    for (const int64_t k : {1, 31, 64, 65, 200}) {
      const DenseCase c(1, n, k, Fill::kRandom, static_cast<uint64_t>(n * 1000 + k));
      std::vector<int8_t> back(c.w.size(), 99);
      CHECK(cuda::UnpackGemmS8(n, k, c.packed.data(), back.data(), k, nullptr) == 0);
      CHECK(back == c.w);
      for (int64_t j = 0; j < n; ++j) {
        int32_t sum = 0;
        for (int64_t p = 0; p < k; ++p) sum += c.w[static_cast<size_t>(j * k + p)];
        CHECK(c.col_sum[static_cast<size_t>(j)] == sum);
      }
    }
}

TEST(SumsOfEveryTile) {
  uint64_t seed = 1;
  for (int tile = 0; tile < cuda::kGemmS8TileCount; ++tile) {
    const cuda::GemmTile& t = cuda::kGemmS8Tiles[tile];
    for (const int64_t m : Around(t.block_m))
      for (const int64_t n : Around(t.block_n))
        CheckSums(DenseCase(m, n, 64 + static_cast<int64_t>(seed * 37 % 400), Fill::kRandom, seed),
                  {tile, 1, static_cast<uint32_t>(seed++ % 3)});
  }
}

TEST(SumsOfEveryDepth) {
  uint64_t seed = 100;
  for (int tile = kFewRows; tile < cuda::kGemmS8TileCount; ++tile)
    for (const int64_t k : {1, 63, 64, 65, 128, 129, 300, 1000})
      for (const int splits : {1, 3}) {
        if (Quick() && k != 65 && k != 300) continue;
        CheckSums(DenseCase(9, 40, k, Fill::kRandom, seed), {tile, splits, static_cast<uint32_t>(seed % 3)});
        ++seed;
      }
}

TEST(SumsOfFewRows) {
  uint64_t seed = 200;
  for (const int64_t m : {1, 7, 8, 9, 16})
    for (const int64_t n : {1, 31, 32, 33, 100}) {
      if (Quick() && n != 33) continue;
      CheckSums(DenseCase(m, n, 700, Fill::kRandom, seed),
                {kFewRows, static_cast<int>(seed % 4), static_cast<uint32_t>(seed % 3)});
      ++seed;
    }
}

TEST(SumsAtTheirBounds) {
  for (const Fill fill : {Fill::kHighest, Fill::kLowest, Fill::kAlternating})
    for (const int tile : {kFewRows, 0}) CheckSums(DenseCase(2, 3, Quick() ? 2000 : 65536, fill, 7), {tile, 2, 0});
}

TEST(LauncherChoosesTilesAndParts) {
  for (const int64_t m : {20, 60, 130}) CheckSums(DenseCase(m, 70, 1100, Fill::kRandom, 300), {-1, 0, 0});
}

TEST(Epilogues) {
  uint64_t seed = 400;
  for (const EpilogueKind& kind : kEpilogues)
    for (int tile = kFewRows; tile < cuda::kGemmS8TileCount; ++tile) {
      if (Quick() && tile == 3) continue;
      const int64_t m = tile == kFewRows ? 13 : 33;
      CheckEpilogue(kind, m, 72, 0, {tile, 1 + static_cast<int>(seed % 2), static_cast<uint32_t>(seed % 3)}, seed);
      CheckEpilogue(kind, m, 70, 3, {tile, 1, static_cast<uint32_t>(seed % 3)}, seed + 1);
      seed += 2;
    }
}

TEST(NaNRowsAreNaNAndBadCallsAreErrors) {
  static Workspace workspace;
  const DenseCase c(3, 20, 70, Fill::kRandom, 9);
  for (const int tile : {kFewRows, 0, 2}) {
    EpilogueCase epilogue({DType::kF16, Activation::kGelu, true, false}, 3, 20, 1e-2f, 9);
    epilogue.row_scale[1] = FloatOf(0x7fc00000u);
    cuda::GemmS8Args args = ArgsOf(c, {tile, 1, 0}, workspace);
    args.epilogue = epilogue.Args(c.col_sum);
    CHECK(cuda::GemmS8(args, nullptr) == 0);
    epilogue.Check("NaN", epilogue.Expected(c.Sums(), c.col_sum));
    args.lda = 80;
    CHECK(cuda::GemmS8(args, nullptr) == cuda::kInvalidValue);
  }
}

// Every way through shared memory and through the workspace once, for the thread sanitizer.
TEST(RaceFree) {
  for (const int tile : {kFewRows, 0, 2}) CheckSums(DenseCase(9, 40, 600, Fill::kRandom, 11), {tile, 2, 1});
}

// Neither ldmatrix nor the 16-byte reads of W and of the staged sums may meet a bank twice.
TEST(NoBankConflicts) {
  for (int tile = 0; tile < cuda::kGemmS8TileCount; ++tile) {
    const DenseCase c(cuda::kGemmS8Tiles[tile].block_m, 128, 256, Fill::kRandom, 5);
    emulate::counters = {};
    CheckSums(c, {tile, 1, 0});
    CHECK(emulate::counters.ldmatrix > 0);
    CHECK_OR(emulate::counters.ldmatrix_wavefronts == emulate::counters.ldmatrix, "tile %d: %lu cycles for %lu", tile,
             emulate::counters.ldmatrix_wavefronts, emulate::counters.ldmatrix);
  }
}

// A and W come from memory once for every tile that needs them.
TEST(BytesCopied) {
  const DenseCase c(128, 256, 320, Fill::kRandom, 6);
  emulate::counters = {};
  CheckSums(c, {3, 1, 0});
  CHECK(emulate::counters.async_bytes == 2 * 128 * 320 + 256 * 320);
}

}  // namespace tersor::testing

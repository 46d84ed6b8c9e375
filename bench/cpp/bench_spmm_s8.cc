// spmm_s8 against linear_s8 on the same weight, densified: fp32 in and out, bias, dynamic quantisation included.
//
//   bench_spmm_s8 [M=128] [N=768] [K=768] [threads=1] [block=4] [isa]
//
// A few calls of the one are followed by as many of the other, so that a change of clock rate hits both. Weights are
// random 1x4 blocks; a block of 1 is an unstructured weight. Both weights lie in huge pages, as those of layers do.
// "ceiling" is the time that the non-zero blocks alone take at the speed of RunInt8Peak.
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "tersor/isa.h"
#include "tersor/spmm_s8.h"

namespace tersor::bench {
namespace {

constexpr double kDensities[] = {1.0, 0.5, 0.3, 0.2, 0.1, 0.05, 0.0};
constexpr int kCalls = 10;

double Now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

double Quantile(std::vector<double> values, double q) {
  const auto at = values.begin() + static_cast<std::ptrdiff_t>(q * static_cast<double>(values.size() - 1));
  std::nth_element(values.begin(), at, values.end());
  return *at;
}

struct Free {
  void operator()(void* p) const { std::free(p); }
};
using Block = std::unique_ptr<char[], Free>;

Block Allocate(size_t bytes) {
  constexpr size_t kPage = size_t{2} << 20;
  const size_t whole = (bytes + kPage - 1) / kPage * kPage;
  Block block(static_cast<char*>(std::aligned_alloc(kPage, whole)));
  (void)madvise(block.get(), whole, MADV_HUGEPAGE);
  return block;
}

struct Shape {
  int64_t m, n, k, block;
};

std::vector<int8_t> Weight(const Shape& shape, double density) {
  std::mt19937 random(1);
  std::vector<int8_t> weight(static_cast<size_t>(shape.n * shape.k));
  for (int64_t row = 0; row < shape.n; ++row)
    for (int64_t p = 0; p < shape.k; p += shape.block) {
      const bool kept = static_cast<double>(random()) < density * 0x1p32;
      for (int64_t i = p; kept && i < std::min(p + shape.block, shape.k); ++i)
        weight[static_cast<size_t>(row * shape.k + i)] = static_cast<int8_t>(static_cast<int>(random() % 127) + 1);
    }
  return weight;
}

void Run(const Shape& shape, double density, const Executor& executor, double seconds) {
  const std::vector<int8_t> weight = Weight(shape, density);
  const std::vector<float> scale(static_cast<size_t>(shape.n), 0.01f);
  const size_t sparse_bytes = PackedBytesSpmmS8(shape.n, shape.k, weight.data());
  const size_t dense_bytes = PackedBytesS8(shape.n, shape.k);
  const Block sparse = Allocate(sparse_bytes), dense = Allocate(dense_bytes);
  PackSpmmS8(shape.n, shape.k, weight.data(), scale.data(), nullptr, sparse.get(), sparse_bytes);
  PackBeginS8(shape.n, shape.k, dense.get(), dense_bytes);
  PackRowsS8(0, shape.n, weight.data(), scale.data(), dense.get(), dense_bytes);

  std::vector<float> x(static_cast<size_t>(shape.m * shape.k)), y(static_cast<size_t>(shape.m * shape.n));
  std::vector<float> bias(static_cast<size_t>(shape.n));
  std::mt19937 random(2);
  std::normal_distribution<float> normal;
  for (float& v : x) v = normal(random);
  for (float& v : bias) v = normal(random);
  LinearS8Args args{};
  args.m = shape.m;
  args.x = x.data();
  args.ldx = shape.k;
  args.bias = bias.data();
  args.y = y.data();
  args.ldy = shape.n;

  std::vector<double> sparse_times, dense_times, macs_per_second;
  for (const double end = Now() + seconds; Now() < end || sparse_times.size() < 20;) {
    const double t0 = Now();
    const int64_t macs = RunInt8Peak(2000);
    const double t1 = Now();
    args.packed = dense.get();
    args.packed_bytes = dense_bytes;
    for (int i = 0; i < kCalls; ++i) LinearS8(args, executor);
    const double t2 = Now();
    args.packed = sparse.get();
    args.packed_bytes = sparse_bytes;
    for (int i = 0; i < kCalls; ++i) SpmmS8(args, executor);
    const double t3 = Now();
    macs_per_second.push_back(static_cast<double>(macs) / (t1 - t0));
    dense_times.push_back((t2 - t1) / kCalls);
    sparse_times.push_back((t3 - t2) / kCalls);
  }
  const PackedInfoSpmmS8 info = InspectPackedSpmmS8(sparse.get(), sparse_bytes);
  const double median = Quantile(sparse_times, 0.5), dense_median = Quantile(dense_times, 0.5);
  const double live = 4.0 * static_cast<double>(info.quads * shape.m);
  const double ceiling = live / (Quantile(macs_per_second, 0.5) * executor.threads);
  std::printf("%-26s %5.2f %10.2f %10.2f %10.2f %7.2f %10.2f %7.1f %11zu\n", info.kernel.c_str(), density, median * 1e6,
              Quantile(sparse_times, 0.1) * 1e6, dense_median * 1e6, dense_median / median, ceiling * 1e6,
              100.0 * ceiling / median, sparse_bytes);
  std::fflush(stdout);
}

int Main(int argc, char** argv) {
  const auto number = [&](int i, int64_t otherwise) { return argc > i ? std::atoll(argv[i]) : otherwise; };
  const Shape shape = {number(1, 128), number(2, 768), number(3, 768), number(5, 4)};
  const int threads = static_cast<int>(number(4, 1));
  if (shape.m < 1 || shape.n < 1 || shape.k < 1 || shape.block < 1 || threads < 1) {
    std::fprintf(stderr, "usage: bench_spmm_s8 [M=128] [N=768] [K=768] [threads=1] [block=4] [isa]\n");
    return 2;
  }
  if (argc > 6) SetIsaCap(argv[6]);
  SetPoolThreads(threads);
  std::printf("# M=%lld N=%lld K=%lld threads=%d block=1x%lld\n", static_cast<long long>(shape.m),
              static_cast<long long>(shape.n), static_cast<long long>(shape.k), threads,
              static_cast<long long>(shape.block));
  std::printf("%-26s %5s %10s %10s %10s %7s %10s %7s %11s\n", "kernel", "dens", "median us", "10th us", "dense us",
              "ratio", "ceiling us", "percent", "bytes");
  for (double density : kDensities) Run(shape, density, threads == 1 ? SerialExecutor() : PoolExecutor(), 0.5);
  return 0;
}

}  // namespace
}  // namespace tersor::bench

int main(int argc, char** argv) {
  try {
    return tersor::bench::Main(argc, argv);
  } catch (const tersor::Error& error) {
    std::fprintf(stderr, "bench_spmm_s8: %s\n", error.what());
    return 1;
  }
}

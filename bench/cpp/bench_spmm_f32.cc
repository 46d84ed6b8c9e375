// spmm_f32 on random unstructured weights against the textbook loop over CSR: fp32 in and out, bias.
//
//   bench_spmm_f32 [M=128] [N=768] [K=768] [threads=1] [isa]
//
// The loop is SciPy's csr_matvecs, on one thread: each non-zero adds a multiple of a row of x^T [k][m] to a row of
// y^T. A call of the one follows a call of the other, so that a change of clock rate hits both. "GFLOP/s" counts the
// non-zeros alone. Dense rivals are in bench/compare.py.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <vector>

#include "tersor/isa.h"
#include "tersor/spmm_f32.h"

namespace tersor::bench {
namespace {

constexpr double kDensities[] = {1.0, 0.5, 0.3, 0.2, 0.1, 0.05, 0.0};

double Now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

double Quantile(std::vector<double> values, double q) {
  const auto at = values.begin() + static_cast<std::ptrdiff_t>(q * static_cast<double>(values.size() - 1));
  std::nth_element(values.begin(), at, values.end());
  return *at;
}

struct Free {
  void operator()(void* p) const { std::free(p); }
};
template <typename T>
using Aligned = std::unique_ptr<T[], Free>;

// Starts at a cache line, as the tensors of frameworks do.
template <typename T>
Aligned<T> Allocate(size_t count) {
  return Aligned<T>(static_cast<T*>(std::aligned_alloc(64, (count * sizeof(T) + 63) / 64 * 64)));
}

struct Csr {
  std::vector<int32_t> row_offsets{0}, column;
  std::vector<float> value;
};

Csr ToCsr(int64_t n, int64_t k, const std::vector<float>& weight) {
  Csr csr;
  for (int64_t j = 0; j < n; ++j) {
    for (int64_t p = 0; p < k; ++p) {
      const float w = weight[static_cast<size_t>(j * k + p)];
      if (w == 0.0f) continue;
      csr.column.push_back(static_cast<int32_t>(p));
      csr.value.push_back(w);
    }
    csr.row_offsets.push_back(static_cast<int32_t>(csr.value.size()));
  }
  return csr;
}

void MultiplyCsr(int64_t m, int64_t n, const Csr& csr, const float* bias, const float* x_t, float* y_t) {
  for (int64_t j = 0; j < n; ++j) {
    float* y = y_t + j * m;
    std::fill_n(y, m, bias[j]);
    for (int32_t at = csr.row_offsets[static_cast<size_t>(j)]; at < csr.row_offsets[static_cast<size_t>(j) + 1]; ++at) {
      const float* x = x_t + csr.column[static_cast<size_t>(at)] * m;
      const float w = csr.value[static_cast<size_t>(at)];
      for (int64_t i = 0; i < m; ++i) y[i] += w * x[i];
    }
  }
}

struct Shape {
  int64_t m, n, k;
};

void Run(const Shape& shape, double density, const Executor& executor, double seconds) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  const auto normals = [&](int64_t count) {
    Aligned<float> values = Allocate<float>(static_cast<size_t>(count));
    for (int64_t i = 0; i < count; ++i) values[static_cast<size_t>(i)] = normal(random);
    return values;
  };
  std::vector<float> weight(static_cast<size_t>(shape.n * shape.k));
  for (float& w : weight) w = static_cast<double>(random()) < density * 0x1p32 ? 0.02f : 0.0f;
  const Aligned<float> x = normals(shape.m * shape.k), bias = normals(shape.n);
  const Aligned<float> y = normals(shape.m * shape.n), y_t = normals(shape.m * shape.n);
  const size_t bytes = PackedBytesSpmmF32(shape.n, shape.k, weight.data());
  const Aligned<char> packed = Allocate<char>(bytes);
  PackSpmmF32(shape.n, shape.k, weight.data(), packed.get(), bytes);
  const Csr csr = ToCsr(shape.n, shape.k, weight);
  SpmmF32Args args{};
  args.m = shape.m;
  args.x = x.get();
  args.ldx = shape.k;
  args.packed = packed.get();
  args.packed_bytes = bytes;
  args.bias = bias.get();
  args.y = y.get();
  args.ldy = shape.n;

  std::vector<double> times, csr_times;
  for (const double end = Now() + seconds; Now() < end || times.size() < 20;) {
    const double t0 = Now();
    MultiplyCsr(shape.m, shape.n, csr, bias.get(), x.get(), y_t.get());
    const double t1 = Now();
    SpmmF32(args, executor);  // fills the caches again
    const double t2 = Now();
    for (int i = 0; i < 5; ++i) SpmmF32(args, executor);
    times.push_back((Now() - t2) / 5);
    csr_times.push_back(t1 - t0);
  }
  const PackedInfoSpmmF32 info = InspectPackedSpmmF32(packed.get(), bytes);
  const double median = Quantile(times, 0.5), csr_median = Quantile(csr_times, 0.5);
  std::printf("%-22s %5.2f %10.2f %10.2f %10.2f %7.2f %9.1f %11zu\n", info.kernel.c_str(), density, median * 1e6,
              Quantile(times, 0.1) * 1e6, csr_median * 1e6, csr_median / median,
              2e-9 * static_cast<double>(info.nnz * shape.m) / median, bytes);
  std::fflush(stdout);
}

int Main(int argc, char** argv) {
  const auto number = [&](int i, int64_t otherwise) { return argc > i ? std::atoll(argv[i]) : otherwise; };
  const Shape shape = {number(1, 128), number(2, 768), number(3, 768)};
  const int threads = static_cast<int>(number(4, 1));
  if (shape.m < 1 || shape.n < 1 || shape.k < 1 || threads < 1) {
    std::fprintf(stderr, "usage: bench_spmm_f32 [M=128] [N=768] [K=768] [threads=1] [isa]\n");
    return 2;
  }
  if (argc > 5) SetIsaCap(argv[5]);
  SetPoolThreads(threads);
  std::printf("# M=%lld N=%lld K=%lld threads=%d\n", static_cast<long long>(shape.m), static_cast<long long>(shape.n),
              static_cast<long long>(shape.k), threads);
  std::printf("%-22s %5s %10s %10s %10s %7s %9s %11s\n", "kernel", "dens", "median us", "10th us", "csr us", "ratio",
              "GFLOP/s", "bytes");
  for (double density : kDensities) Run(shape, density, threads == 1 ? SerialExecutor() : PoolExecutor(), 0.3);
  return 0;
}

}  // namespace
}  // namespace tersor::bench

int main(int argc, char** argv) {
  try {
    return tersor::bench::Main(argc, argv);
  } catch (const tersor::Error& error) {
    std::fprintf(stderr, "bench_spmm_f32: %s\n", error.what());
    return 1;
  }
}

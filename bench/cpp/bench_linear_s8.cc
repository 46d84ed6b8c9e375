// linear_s8 against the measured ceiling: fp32 in and out, bias, dynamic quantisation included in the time.
//
//   bench_linear_s8 SHAPES [threads=1] [layers=1] [isa]
//
// SHAPES has one "M N K" a line. With layers > 1 the calls walk through that many weights, as a model does.
// Ceiling and calls are timed in turn, so that a change of clock rate hits both.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "tersor/isa.h"
#include "tersor/linear_s8.h"

namespace tersor::bench {
namespace {

struct Shape {
  int64_t m, n, k;
  double ops() const { return 2.0 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k); }
};

struct Free {
  void operator()(void* p) const { std::free(p); }
};
template <typename T>
using Buffer = std::unique_ptr<T[], Free>;

template <typename T>
Buffer<T> Allocate(size_t count) {
  return Buffer<T>(static_cast<T*>(std::aligned_alloc(64, (count * sizeof(T) + 63) / 64 * 64)));
}

double Now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

double Quantile(std::vector<double>& values, double q) {
  const auto at = values.begin() + static_cast<std::ptrdiff_t>(q * static_cast<double>(values.size() - 1));
  std::nth_element(values.begin(), at, values.end());
  return *at;
}

// One shape with its weights, inputs and outputs.
class Case {
 public:
  Case(const Shape& shape, int layers) : shape_(shape), bytes_(PackedBytesS8(shape.n, shape.k)) {
    std::mt19937 random(1);
    std::vector<int8_t> weight(static_cast<size_t>(shape.n * shape.k));
    for (int8_t& w : weight) w = static_cast<int8_t>(static_cast<int>(random() % 255) - 127);
    const std::vector<float> scale(static_cast<size_t>(shape.n), 0.01f);
    for (int i = 0; i < layers; ++i) {
      packed_.push_back(Allocate<char>(bytes_));
      PackBeginS8(shape.n, shape.k, packed_.back().get(), bytes_);
      PackRowsS8(0, shape.n, weight.data(), scale.data(), packed_.back().get(), bytes_);
    }
    x_ = Allocate<float>(static_cast<size_t>(shape.m * shape.k));
    y_ = Allocate<float>(static_cast<size_t>(shape.m * shape.n));
    bias_ = Allocate<float>(static_cast<size_t>(shape.n));
    std::normal_distribution<float> normal;
    std::generate_n(x_.get(), shape.m * shape.k, [&] { return normal(random); });
    std::generate_n(bias_.get(), shape.n, [&] { return normal(random); });
  }

  void Call(size_t layer, const Executor& executor) {
    LinearS8Args args{};
    args.m = shape_.m;
    args.x = x_.get();
    args.ldx = shape_.k;
    args.packed = packed_[layer % packed_.size()].get();
    args.packed_bytes = bytes_;
    args.bias = bias_.get();
    args.y = y_.get();
    args.ldy = shape_.n;
    LinearS8(args, executor);
  }

  std::string kernel() const { return InspectPackedS8(packed_[0].get(), bytes_).kernel; }

 private:
  Shape shape_;
  size_t bytes_;
  std::vector<Buffer<char>> packed_;
  Buffer<float> x_, y_, bias_;
};

void Run(const Shape& shape, int threads, int layers) {
  constexpr double kSecondsPerShape = 0.5, kSecondsPerSample = 50e-6;
  constexpr int64_t kPeakIterations = 5000;
  const Executor& executor = threads == 1 ? SerialExecutor() : PoolExecutor();
  Case c(shape, layers);
  const double begin = Now();
  for (int i = 0; i < layers; ++i) c.Call(static_cast<size_t>(i), executor);
  const double guess = (Now() - begin) / layers;
  const int calls = std::max(layers, static_cast<int>(kSecondsPerSample / guess) + 1);
  const int samples = std::clamp(static_cast<int>(kSecondsPerShape / (guess * calls)), 15, 2000);

  std::vector<double> seconds, peak_ops_per_second;
  for (int s = 0; s < samples; ++s) {
    const double t0 = Now();
    const int64_t macs = RunInt8Peak(kPeakIterations);
    const double t1 = Now();
    for (int i = 0; i < calls; ++i) c.Call(static_cast<size_t>(i), executor);
    seconds.push_back((Now() - t1) / calls);
    peak_ops_per_second.push_back(2.0 * static_cast<double>(macs) / (t1 - t0));
  }
  const double median = Quantile(seconds, 0.5), fast = Quantile(seconds, 0.1),
               peak = Quantile(peak_ops_per_second, 0.5);
  const double weight_bytes = static_cast<double>(shape.n) * static_cast<double>(shape.k);
  std::printf("%-28s %5lld %5lld %5lld %10.2f %10.2f %9.1f %8.1f %9.1f %7.1f\n", c.kernel().c_str(),
              static_cast<long long>(shape.m), static_cast<long long>(shape.n), static_cast<long long>(shape.k),
              median * 1e6, fast * 1e6, shape.ops() / median / 1e9, weight_bytes / median / 1e9, peak / 1e9,
              100.0 * shape.ops() / median / (peak * threads));
  std::fflush(stdout);
}

int Main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: bench_linear_s8 SHAPES [threads=1] [layers=1] [isa]\n");
    return 2;
  }
  const int threads = argc > 2 ? std::atoi(argv[2]) : 1, layers = argc > 3 ? std::atoi(argv[3]) : 1;
  std::FILE* file = std::fopen(argv[1], "r");
  if (file == nullptr || threads < 1 || layers < 1) {
    std::fprintf(stderr, "bench_linear_s8: cannot read %s, or threads or layers below 1\n", argv[1]);
    return 2;
  }
  if (argc > 4) SetIsaCap(argv[4]);
  SetPoolThreads(threads);
  std::printf("# threads=%d layers=%d; ceiling: GOP/s of one core, percent: of the ceiling of all threads\n", threads,
              layers);
  std::printf("%-28s %5s %5s %5s %10s %10s %9s %8s %9s %7s\n", "kernel", "M", "N", "K", "median us", "10th us", "GOP/s",
              "GB/s", "ceiling", "percent");
  char line[256];
  while (std::fgets(line, sizeof line, file) != nullptr) {
    long long m, n, k;
    if (std::sscanf(line, "%lld %lld %lld", &m, &n, &k) == 3) Run({m, n, k}, threads, layers);
  }
  std::fclose(file);
  return 0;
}

}  // namespace
}  // namespace tersor::bench

int main(int argc, char** argv) {
  try {
    return tersor::bench::Main(argc, argv);
  } catch (const tersor::Error& error) {
    std::fprintf(stderr, "bench_linear_s8: %s\n", error.what());
    return 1;
  }
}

// conv_s8 against the measured ceiling: bytes in and out, bias and relu.
//
//   bench_conv_s8 SHAPES [threads=1] [batch=1] [isa]
//
// SHAPES has one "in out groups kernel stride pad height" a line. Ceiling and calls are timed in turn.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "tersor/conv_s8.h"
#include "tersor/isa.h"

namespace tersor::bench {
namespace {

double Now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

double Median(std::vector<double>& values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

struct Case {
  Case(const ConvShape& shape, int64_t batch, int64_t height) : args{} {
    std::mt19937 random(1);
    std::vector<int8_t> weight(static_cast<size_t>(shape.out_channels * shape.depth()));
    for (int8_t& w : weight) w = static_cast<int8_t>(static_cast<int>(random() % 255) - 127);
    bias.assign(static_cast<size_t>(shape.out_channels), 0.5f);
    const std::vector<float> scale(bias.size(), 0.01f);
    args.packed_bytes = PackedBytesConvS8(shape);
    packed = std::aligned_alloc(64, (args.packed_bytes + 63) / 64 * 64);
    PackConvS8(shape, weight.data(), scale.data(), packed, args.packed_bytes);
    x.resize(static_cast<size_t>(batch * height * height * shape.in_channels));
    for (uint8_t& v : x) v = static_cast<uint8_t>(random());
    const int64_t out = shape.OutHeight(height);
    y.resize(static_cast<size_t>(batch * out * out * shape.out_channels));
    ops = 2.0 * static_cast<double>(y.size()) * static_cast<double>(shape.depth());
    args.batch = batch;
    args.height = args.width = height;
    args.x = x.data();
    args.x_as = {0.02f, 0};
    args.packed = packed;
    args.bias = bias.data();
    args.activation = ConvActivation::kRelu;
    args.y = y.data();
    args.y_as = {0.02f, 0};
  }
  ~Case() { std::free(packed); }
  Case(const Case&) = delete;
  Case& operator=(const Case&) = delete;

  ConvS8Args args;
  double ops;
  void* packed;
  std::vector<float> bias;
  std::vector<uint8_t> x, y;
};

void Run(const ConvShape& shape, int64_t batch, int64_t height, int threads) {
  constexpr double kSecondsPerShape = 0.5, kSecondsPerSample = 50e-6;
  constexpr int64_t kPeakIterations = 5000;
  const Executor& executor = threads == 1 ? SerialExecutor() : PoolExecutor();
  Case c(shape, batch, height);
  const double begin = Now();
  ConvS8(c.args, executor);
  const double guess = Now() - begin;
  const int calls = static_cast<int>(kSecondsPerSample / guess) + 1;
  const int samples = std::clamp(static_cast<int>(kSecondsPerShape / (guess * calls)), 15, 2000);
  std::vector<double> seconds, peaks;
  for (int s = 0; s < samples; ++s) {
    const double t0 = Now();
    const int64_t macs = RunInt8Peak(kPeakIterations);
    const double t1 = Now();
    for (int i = 0; i < calls; ++i) ConvS8(c.args, executor);
    seconds.push_back((Now() - t1) / calls);
    peaks.push_back(2.0 * static_cast<double>(macs) / (t1 - t0));
  }
  const double median = Median(seconds), peak = Median(peaks);
  std::printf("%-28s %5lld %5lld %5lld %3lldx%-3lld %4lld %10.2f %9.1f %9.1f %7.1f %9.3f\n",
              KernelOfPackedConvS8(c.packed, c.args.packed_bytes).c_str(), static_cast<long long>(shape.in_channels),
              static_cast<long long>(shape.out_channels), static_cast<long long>(shape.groups),
              static_cast<long long>(shape.kernel_h), static_cast<long long>(shape.stride_h),
              static_cast<long long>(height), median * 1e6, c.ops / median / 1e9, peak / 1e9,
              100.0 * c.ops / median / (peak * threads), median * 1e9 / static_cast<double>(c.y.size()));
  std::fflush(stdout);
}

int Main(int argc, char** argv) {
  const int threads = argc > 2 ? std::atoi(argv[2]) : 1, batch = argc > 3 ? std::atoi(argv[3]) : 1;
  std::FILE* file = argc < 2 ? nullptr : std::fopen(argv[1], "r");
  if (file == nullptr || threads < 1 || batch < 1) {
    std::fprintf(stderr, "usage: bench_conv_s8 SHAPES [threads=1] [batch=1] [isa]\n");
    return 2;
  }
  if (argc > 4) SetIsaCap(argv[4]);
  SetPoolThreads(threads);
  std::printf("# threads=%d batch=%d; ceiling: GOP/s of one core, percent: of the ceiling of all threads\n", threads,
              batch);
  std::printf("%-28s %5s %5s %5s %7s %4s %10s %9s %9s %7s %9s\n", "kernel", "in", "out", "group", "k x s", "size",
              "median us", "GOP/s", "ceiling", "percent", "ns/output");
  char line[256];
  while (std::fgets(line, sizeof line, file) != nullptr) {
    long long in, out, groups, k, s, pad, height;
    if (std::sscanf(line, "%lld %lld %lld %lld %lld %lld %lld", &in, &out, &groups, &k, &s, &pad, &height) == 7)
      Run({in, out, groups, k, k, s, s, 1, 1, pad, pad, pad, pad}, batch, height, threads);
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
    std::fprintf(stderr, "bench_conv_s8: %s\n", error.what());
    return 1;
  }
}

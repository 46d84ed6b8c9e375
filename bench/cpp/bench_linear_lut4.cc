// linear_lut4 beside linear_s8 on weights of one shape: fp32 in and out, dynamic quantisation included in the time.
//
//   bench_linear_lut4 M N K [seconds=5] [isa] [copies=4]
//
// Everything takes turns call by call and walks through `copies` of its weight, so that no large weight comes from the
// last level of cache. The fastest twentieth of the calls counts, in time on the CPU: a busy host slows calls at
// random.
#include <time.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "tersor/isa.h"
#include "tersor/linear_lut4.h"

namespace tersor::bench {
namespace {

struct Free {
  void operator()(void* p) const { std::free(p); }
};
using Block = std::unique_ptr<char[], Free>;

Block Allocate(size_t bytes) {
  constexpr size_t kHugePage = size_t{2} << 20;
  return Block(static_cast<char*>(std::aligned_alloc(kHugePage, (bytes + kHugePage - 1) / kHugePage * kHugePage)));
}

double Now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

double CpuSeconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

struct Engine {
  std::string name;
  void (*run)(const LinearS8Args&, const Executor&);
  size_t bytes;
  std::vector<Block> copies;
  std::vector<double> seconds;
};

Engine Int8(int64_t n, int64_t k, int copies) {
  std::mt19937 random(1);
  std::vector<int8_t> weight(static_cast<size_t>(n * k));
  for (int8_t& w : weight) w = static_cast<int8_t>(static_cast<int>(random() % 255) - 127);
  const std::vector<float> scale(static_cast<size_t>(n), 0.01f);
  Engine engine{"int8", LinearS8, PackedBytesS8(n, k), {}, {}};
  for (int i = 0; i < copies; ++i) {
    engine.copies.push_back(Allocate(engine.bytes));
    PackBeginS8(n, k, engine.copies.back().get(), engine.bytes);
    PackRowsS8(0, n, weight.data(), scale.data(), engine.copies.back().get(), engine.bytes);
  }
  return engine;
}

Engine Codes(int64_t n, int64_t k, int32_t bits, int64_t group, int copies) {
  std::mt19937 random(1);
  const Lut4Spec spec{n, k, group, bits, 1, 1};
  std::vector<uint8_t> codes(static_cast<size_t>(n * k));
  for (uint8_t& code : codes) code = static_cast<uint8_t>(random() % (1u << bits));
  std::vector<int8_t> table(size_t{1} << bits);
  for (size_t i = 0; i < table.size(); ++i)
    table[i] = static_cast<int8_t>(std::max<int>(static_cast<int>(i) - (1 << (bits - 1)), -127));
  const std::vector<float> scale(static_cast<size_t>(n * spec.groups()), 0.01f);
  const std::string groups = group == 0 ? "" : ", groups of " + std::to_string(group);
  Engine engine{std::to_string(bits) + " bits" + groups, LinearLut4, PackedBytesLut4(spec), {}, {}};
  for (int i = 0; i < copies; ++i) {
    engine.copies.push_back(Allocate(engine.bytes));
    PackLut4(spec, {codes.data(), table.data(), scale.data(), nullptr}, engine.copies.back().get(), engine.bytes);
  }
  return engine;
}

void Run(int64_t m, int64_t n, int64_t k, double limit, int copies) {
  std::vector<Engine> engines;
  engines.push_back(Int8(n, k, copies));
  for (int64_t group : {0, 128, 64, 32}) engines.push_back(Codes(n, k, 4, group, copies));
  for (int32_t bits : {5, 6, 7, 8}) engines.push_back(Codes(n, k, bits, 128, copies));
  std::mt19937 random(2);
  std::vector<float> x(static_cast<size_t>(m * k)), y(static_cast<size_t>(m * n));
  std::normal_distribution<float> normal;
  for (float& value : x) value = normal(random);
  const double end = Now() + limit;
  for (size_t turn = 0; turn < 20 || Now() < end; ++turn) {
    for (Engine& engine : engines) {
      LinearS8Args args{};
      args.m = m;
      args.x = x.data();
      args.ldx = k;
      args.packed = engine.copies[turn % engine.copies.size()].get();
      args.packed_bytes = engine.bytes;
      args.y = y.data();
      args.ldy = n;
      const double begin = CpuSeconds();
      engine.run(args, SerialExecutor());
      engine.seconds.push_back(CpuSeconds() - begin);
    }
  }
  std::printf("%-28s %10s %10s %8s %10s   m=%lld n=%lld k=%lld, %s\n", "weight", "median us", "fast us", "GB/s",
              "over int8", static_cast<long long>(m), static_cast<long long>(n), static_cast<long long>(k),
              ActiveIsa().c_str());
  double int8 = 0.0;
  for (Engine& engine : engines) {
    std::sort(engine.seconds.begin(), engine.seconds.end());
    const double median = engine.seconds[engine.seconds.size() / 2], fast = engine.seconds[engine.seconds.size() / 20];
    if (int8 == 0.0) int8 = fast;
    std::printf("%-28s %10.1f %10.1f %8.1f %10.2f\n", engine.name.c_str(), median * 1e6, fast * 1e6,
                static_cast<double>(engine.bytes) / fast / 1e9, int8 / fast);
  }
}

int Main(int argc, char** argv) {
  const int64_t m = argc > 3 ? std::atoll(argv[1]) : 0, n = m > 0 ? std::atoll(argv[2]) : 0;
  const int64_t k = m > 0 ? std::atoll(argv[3]) : 0;
  const double seconds = argc > 4 ? std::atof(argv[4]) : 5.0;
  const int copies = argc > 6 ? std::atoi(argv[6]) : 4;
  if (m < 1 || n < 1 || k < 1 || copies < 1) {
    std::fprintf(stderr, "usage: bench_linear_lut4 M N K [seconds=5] [isa] [copies=4]\n");
    return 2;
  }
  if (argc > 5 && *argv[5] != '\0') SetIsaCap(argv[5]);
  Run(m, n, k, seconds, copies);
  return 0;
}

}  // namespace
}  // namespace tersor::bench

int main(int argc, char** argv) {
  try {
    return tersor::bench::Main(argc, argv);
  } catch (const tersor::Error& error) {
    std::fprintf(stderr, "bench_linear_lut4: %s\n", error.what());
    return 1;
  }
}

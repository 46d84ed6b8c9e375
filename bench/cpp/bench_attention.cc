// The kernels of attention on one head: packing keys and values, and queries against them.
//
//   bench_attention [depth=32] [isa]
//
// "ceiling" is the time of the two products alone at 32 int16 multiply-adds a cycle, half the int8 rate that is
// measured in the same run.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "core/registry.h"
#include "tersor/isa.h"

namespace tersor::bench {
namespace {

double Now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Nanoseconds, the median of many short runs.
template <typename Body>
double Time(Body body) {
  std::vector<double> laps;
  for (int lap = 0; lap < 41; ++lap) {
    constexpr int kCalls = 50;
    const double begin = Now();
    for (int i = 0; i < kCalls; ++i) body();
    laps.push_back((Now() - begin) / kCalls * 1e9);
  }
  std::nth_element(laps.begin(), laps.begin() + 20, laps.end());
  return laps[20];
}

double Int8MacsPerNs() {
  double best = 0;
  for (int lap = 0; lap < 50; ++lap) {
    const double begin = Now();
    const int64_t macs = RunInt8Peak(20000);
    best = std::max(best, static_cast<double>(macs) / ((Now() - begin) * 1e9));
  }
  return best;
}

void Run(int32_t depth) {
  const AttentionKernel& kernel = *Selected().attention;
  constexpr int32_t kKeys = kAttentionKeys, kMostRows = 64;
  const int64_t ld = 3 * depth + 64, ld_out = (depth + 15) / 16 * 16;
  std::vector<int16_t> q(kMostRows * static_cast<size_t>(ld), 100), kv(kKeys * static_cast<size_t>(ld), 50);
  std::vector<int16_t> key_panel(kKeys * static_cast<size_t>(ld_out)), value_panel(key_panel);
  std::vector<float> scale(kKeys, 1e-4f), share(kKeys, 8000.0f), max(kMostRows), sum(kMostRows);
  std::vector<float> out(kMostRows * static_cast<size_t>(ld_out));
  const double rate = Int8MacsPerNs() / 2;
  std::printf("%s, depth %d, %d keys\n", kernel.id, depth, kKeys);
  const double pack =
      Time([&] { kernel.pack(kKeys, depth, kv.data(), kv.data() + depth, ld, key_panel.data(), value_panel.data()); });
  std::printf("pack keys and values  %8.0f ns, %.1f ns a key\n", pack, pack / kKeys);
  for (const int32_t rows : {1, 2, 6, 12, 60}) {
    AttentionArgs g{};
    g.rows = rows;
    g.keys = kKeys;
    g.depth = depth;
    g.q = q.data();
    g.ldq = ld;
    g.q_scale = scale.data();
    g.key_panel = key_panel.data();
    g.value_panel = value_panel.data();
    g.key_scale = scale.data();
    g.value_share = share.data();
    g.value_unit = 1e-4f;
    g.first = g.last = true;
    g.max = max.data();
    g.sum = sum.data();
    g.out = out.data();
    g.ld_out = ld_out;
    const double ns = Time([&] { kernel.attend(g); }), macs = 2.0 * rows * kKeys * depth;
    std::printf("attend %2d queries     %8.0f ns, %.0f ns a query, products at the ceiling %.0f ns\n", rows, ns,
                ns / rows, macs / rate);
  }
}

}  // namespace
}  // namespace tersor::bench

int main(int argc, char** argv) {
  if (argc > 2) tersor::SetIsaCap(argv[2]);
  tersor::bench::Run(argc > 1 ? std::atoi(argv[1]) : 32);
  return 0;
}

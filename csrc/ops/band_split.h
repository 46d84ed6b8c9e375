// Sparse products: bands of weight rows for threads, balanced by their steps.
#pragma once
#include <algorithm>
#include <cstdint>

namespace tersor {

// The first band of a task: the one up to which the earlier tasks have had their share of the steps. Each band counts
// for `extra` steps more, since it costs something without any. A View is a packed sparse weight.
template <int32_t kBandRows, typename View>
int64_t FirstBand(const View& weight, int64_t extra, int32_t task, int32_t tasks) {
  const int64_t bands = weight.layout.bands;
  if (task == tasks) return bands;
  const int64_t share = (weight.steps + bands * extra) * task / tasks;
  const auto steps_before = [&weight](int64_t band) {
    int64_t steps = 0;
    const int64_t group = std::min(band * (kBandRows / weight.kernel->rows), weight.layout.groups);
    for (int64_t block = 0; block < weight.layout.blocks; ++block) {
      const int64_t* starts = weight.starts + block * weight.layout.groups;
      steps += starts[group] - starts[0];
    }
    return steps;
  };
  int64_t band = 0, before = 0;
  for (; band < bands; ++band) {
    const int64_t after = steps_before(band + 1) + (band + 1) * extra;
    if (before + after > 2 * share) break;  // a band goes to the side on which more than half of it lies
    before = after;
  }
  return band;
}

}  // namespace tersor

// Weights that are codes of a table, the call that packs them, and what the op returns by definition.
#pragma once
#include <vector>

#include "kernels/reference/linear_lut4_ref.h"
#include "linear_run.h"
#include "tersor/linear_lut4.h"

namespace tersor::testing {

enum class Tables { kOne, kPerRow, kPerGroup };

struct Lut4Case : LinearCase {
  Lut4Spec spec;
  std::vector<uint8_t> codes;
  std::vector<int8_t> table;
  std::vector<float> group_scale;  // [n][groups]

  Lut4Case(int64_t rows, int64_t columns, int64_t depth, int32_t bits, int64_t group, Tables tables, uint64_t seed)
      : LinearCase(rows, columns, depth, seed) {
    Random random(seed + 1000);
    spec = {n, k, group, bits, 1, 1};
    if (tables != Tables::kOne) spec.table_rows = n;
    if (tables == Tables::kPerGroup) spec.table_groups = spec.groups();
    const size_t entries = size_t{1} << bits;
    for (size_t i = 0; i < static_cast<size_t>(spec.table_rows * spec.table_groups) * entries; ++i)
      table.push_back(static_cast<int8_t>(random.Int(-127, 127)));
    for (int64_t i = 0; i < n * k; ++i) codes.push_back(static_cast<uint8_t>(random.Int(0, (1 << bits) - 1)));
    for (int64_t i = 0; i < n * spec.groups(); ++i)
      group_scale.push_back(random.Uniform(0.1f, 1.0f) / (64.0f * std::sqrt(static_cast<float>(k))));
    Look();
  }

  // w becomes what the codes stand for.
  void Look() {
    for (int64_t j = 0; j < n; ++j)
      for (int64_t p = 0; p < k; ++p) {
        const int64_t part = spec.table_groups == 1 ? 0 : p / spec.group;
        const int64_t at = (spec.table_rows == 1 ? 0 : j * spec.table_groups) + part;
        w[static_cast<size_t>(j * k + p)] =
            table[(static_cast<size_t>(at) << spec.bits) + codes[static_cast<size_t>(j * k + p)]];
      }
  }

  std::vector<char> PackCodes() const {
    std::vector<char> packed(PackedBytesLut4(spec));
    PackLut4(spec, {codes.data(), table.data(), group_scale.data(), input_scale.empty() ? nullptr : input_scale.data()},
             packed.data(), packed.size());
    return packed;
  }

  std::vector<float> ExpectedLut4() const {
    std::vector<float> y(static_cast<size_t>(m * n));
    const int64_t depth = spec.group == 0 ? kMaxDepthS8 : spec.group, parts = (k + depth - 1) / depth;
    for (int64_t i = 0; i < m; ++i) {
      std::vector<float> values(x.begin() + i * k, x.begin() + (i + 1) * k);
      for (size_t p = 0; p < input_scale.size(); ++p) values[p] *= input_scale[p];
      const reference::RowQuantization row = ChooseRowOf(values.data());
      std::vector<uint8_t> q(values.size());
      for (size_t p = 0; p < values.size(); ++p)
        q[p] = std::isnan(row.scale) ? uint8_t{0} : reference::QuantizeOne(values[p], row.inv_scale, row.zero_point);
      for (int64_t j = 0; j < n; ++j) {
        const size_t at = static_cast<size_t>(i * n + j);
        std::vector<float> scale;
        for (int64_t p = 0; p < parts; ++p)
          scale.push_back(group_scale[static_cast<size_t>(j * spec.groups() + (spec.group == 0 ? 0 : p))]);
        y[at] = reference::LinearLut4(k, depth, q.data(), w.data() + j * k, row.zero_point, row.scale, scale.data(),
                                      with_bias ? bias[static_cast<size_t>(j)] : 0.0f,
                                      with_residual ? &residual[at] : nullptr);
      }
    }
    RunnableKernelSets().front()->activation->apply(activation, m * n, y.data());
    for (float& v : y) v = Round(v);
    return y;
  }
};

inline const LinearOp kLut4 = {
    LinearLut4, [](const void* packed, size_t bytes) { return InspectPackedLut4(packed, bytes).kernel; }};

inline void CheckLut4(const Lut4Case& c, const Executor& executor = SerialExecutor(), bool in_place_residual = false) {
  if (!TooManyFailures()) CheckLinear(c, c.PackCodes(), executor, c.ExpectedLut4(), in_place_residual, kLut4);
}

}  // namespace tersor::testing

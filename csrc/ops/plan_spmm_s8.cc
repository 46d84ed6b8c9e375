#include "ops/plan_spmm_s8.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "ops/packed_s8.h"

namespace tersor {
namespace {

struct Matrix {
  int64_t n, n_pad, k;
  const int8_t* weight;
  const BlocksSpmmS8& blocks;

  const int8_t* Row(int64_t row, int64_t block) const { return weight + row * k + block * blocks.depth; }
  int64_t Live(int64_t block) const { return std::min(blocks.depth, k - block * blocks.depth); }
};

// --- The order of kColumns: places of even and odd number are two classes, and a step takes two values of each. A
// value goes to the class that evens out its rows, those with many non-zeros first.
std::vector<uint16_t> BalancedColumns(const Matrix& m, int64_t block) {
  const int64_t depth = m.blocks.depth, live = m.Live(block);
  std::vector<std::vector<int32_t>> rows(static_cast<size_t>(depth));
  for (int64_t row = 0; row < m.n; ++row)
    for (int64_t p = 0; p < live; ++p)
      if (m.Row(row, block)[p] != 0) rows[static_cast<size_t>(p)].push_back(static_cast<int32_t>(row));
  std::vector<uint16_t> by_count(static_cast<size_t>(depth)), columns(static_cast<size_t>(depth));
  std::iota(by_count.begin(), by_count.end(), uint16_t{0});
  std::stable_sort(by_count.begin(), by_count.end(),
                   [&](uint16_t a, uint16_t b) { return rows[a].size() > rows[b].size(); });
  std::vector<int32_t> excess(static_cast<size_t>(m.n));  // of the even class, per row
  int64_t next[2] = {0, 1};
  for (uint16_t p : by_count) {
    int64_t sum = 0;
    for (int32_t row : rows[p]) sum += excess[static_cast<size_t>(row)];
    int64_t odd = sum > 0;
    if (next[odd] >= depth) odd = 1 - odd;
    columns[static_cast<size_t>(next[odd])] = p;
    next[odd] += 2;
    for (int32_t row : rows[p]) excess[static_cast<size_t>(row)] += odd != 0 ? -1 : 1;
  }
  return columns;
}

// --- The order of kOrdered: a quad begins with the fullest value that is left and takes those that share most rows
// with it. A few hundred rows stand for all.
constexpr int64_t kWords = 8;
struct RowSet {
  uint64_t words[kWords] = {};
  void Add(int64_t i) { words[i / 64] |= uint64_t{1} << (i % 64); }
  void Merge(const RowSet& other) {
    for (int64_t i = 0; i < kWords; ++i) words[i] |= other.words[i];
  }
  int Shared(const RowSet& other) const {
    int count = 0;
    for (int64_t i = 0; i < kWords; ++i) count += __builtin_popcountll(words[i] & other.words[i]);
    return count;
  }
};

std::vector<uint16_t> GatheredColumns(const Matrix& m, int64_t block) {
  const int64_t depth = m.blocks.depth, live = m.Live(block), sample = std::min<int64_t>(m.n, kWords * 64);
  std::vector<RowSet> sets(static_cast<size_t>(depth));
  for (int64_t i = 0; i < sample; ++i)
    for (int64_t p = 0; p < live; ++p)
      if (m.Row(i * m.n / sample, block)[p] != 0) sets[static_cast<size_t>(p)].Add(i);
  std::vector<uint16_t> left(static_cast<size_t>(depth)), columns;
  std::iota(left.begin(), left.end(), uint16_t{0});
  std::stable_sort(left.begin(), left.end(),
                   [&](uint16_t a, uint16_t b) { return sets[a].Shared(sets[a]) > sets[b].Shared(sets[b]); });
  RowSet quad;
  while (!left.empty()) {
    auto best = left.begin();
    if (columns.size() % 4 == 0) {
      quad = RowSet();
    } else {
      int most = -1;
      for (auto it = left.begin(); it != left.end(); ++it) {
        const int shared = quad.Shared(sets[*it]);
        if (shared > most) most = shared, best = it;
      }
    }
    quad.Merge(sets[*best]);
    columns.push_back(*best);
    left.erase(best);
  }
  return columns;
}

std::vector<uint16_t> ColumnsOf(SparseFormS8 form, const Matrix& m) {
  std::vector<uint16_t> all;
  for (int64_t block = 0; form != SparseFormS8::kQuads && block < m.blocks.count; ++block) {
    const std::vector<uint16_t> columns =
        form == SparseFormS8::kOrdered ? GatheredColumns(m, block) : BalancedColumns(m, block);
    all.insert(all.end(), columns.begin(), columns.end());
  }
  return all;
}

PlanSpmmS8 PlanOf(SparseFormS8 form, const SpmmS8Kernel& kernel, const Matrix& m) {
  PlanSpmmS8 plan;
  plan.form = form;
  plan.columns = ColumnsOf(form, m);
  for (int64_t block = 0; block < m.blocks.count; ++block) {
    const uint16_t* columns = plan.columns.empty() ? nullptr : plan.columns.data() + block * m.blocks.depth;
    for (int64_t band = 0; band < m.n_pad; band += kBandRowsS8) {
      const int64_t rows = std::min<int64_t>(kBandRowsS8, m.n_pad - band);
      int64_t counts[kBandRowsS8] = {};
      uint8_t order[kBandRowsS8];
      for (int64_t r = 0; r < rows; ++r) {
        order[r] = static_cast<uint8_t>(r);
        if (band + r < m.n)
          counts[r] = static_cast<int64_t>(
              RowStepsSpmmS8(form, m.Row(band + r, block), m.Live(block), columns, m.blocks.depth).size());
        plan.quads += counts[r];
      }
      std::stable_sort(order, order + rows, [&](uint8_t a, uint8_t b) { return counts[a] > counts[b]; });
      plan.order.insert(plan.order.end(), order, order + rows);
      for (int64_t r = 0; r < rows; r += kernel.rows) plan.starts.push_back(plan.starts.back() + counts[order[r]]);
    }
  }
  return plan;
}

bool IsZero(const int8_t* quad) { return (quad[0] | quad[1] | quad[2] | quad[3]) == 0; }

}  // namespace

BlocksSpmmS8::BlocksSpmmS8(const SpmmS8Kernel& kernel, int64_t k) {
  const int64_t least = (k + kernel.depth - 1) / kernel.depth;
  depth = RoundUp((k + least - 1) / least, 64);
  count = (k + depth - 1) / depth;
}

std::vector<RowStepSpmmS8> RowStepsSpmmS8(SparseFormS8 form, const int8_t* row, int64_t live, const uint16_t* columns,
                                          int64_t depth) {
  std::vector<RowStepSpmmS8> steps;
  const auto at = [&](int64_t place) -> int8_t {
    const int64_t p = columns == nullptr ? place : columns[place];
    return p < live ? row[p] : int8_t{0};
  };
  if (form != SparseFormS8::kColumns) {
    for (int64_t place = 0; place < depth; place += 4) {
      const RowStepSpmmS8 step = {{at(place), at(place + 1), at(place + 2), at(place + 3)},
                                  {static_cast<uint16_t>(place), 0, 0, 0}};
      if (!IsZero(step.quad)) steps.push_back(step);
    }
    return steps;
  }
  size_t counts[2] = {0, 0};
  for (int64_t place = 0; place < depth; ++place) {
    if (at(place) == 0) continue;
    const size_t odd = static_cast<size_t>(place % 2), index = counts[odd]++;
    if (index / 2 == steps.size()) steps.push_back({});
    steps[index / 2].quad[2 * odd + index % 2] = at(place);
    steps[index / 2].place[2 * odd + index % 2] = static_cast<uint16_t>(place);
  }
  return steps;
}

PlanSpmmS8 MakePlanSpmmS8(const SpmmS8Kernel& kernel, int64_t n, int64_t n_pad, int64_t k, const int8_t* weight) {
  const BlocksSpmmS8 blocks(kernel, k);
  const Matrix m = {n, n_pad, k, weight, blocks};
  PlanSpmmS8 best = PlanOf(SparseFormS8::kQuads, kernel, m);
  const int64_t quads = best.quads;
  const int64_t non_zeros = n * k - std::count(weight, weight + n * k, int8_t{0});
  // Nothing gains on quads that are almost full.
  if (kernel.multiply_columns == nullptr || non_zeros * 8 >= quads * 4 * 7) return best;
  const auto cost = [&](const PlanSpmmS8& plan) {
    const bool columns = plan.form == SparseFormS8::kColumns, arranged = plan.form != SparseFormS8::kQuads;
    return plan.starts.back() * (columns ? kernel.columns_cost : kernel.quad_cost) +
           (arranged ? blocks.count * blocks.depth * kernel.arrange_cost : 0);
  };
  for (SparseFormS8 form : {SparseFormS8::kOrdered, SparseFormS8::kColumns}) {
    PlanSpmmS8 plan = PlanOf(form, kernel, m);
    if (cost(plan) < cost(best)) best = std::move(plan);
  }
  best.quads = quads;
  return best;
}

}  // namespace tersor

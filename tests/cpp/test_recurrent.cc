// Recurrent layers: errors of sigmoid and tanh, equal bits on every instruction set, and the layer by definition.
#include <algorithm>
#include <cmath>
#include <vector>

#include "core/registry.h"
#include "kernels/recurrent_api.h"
#include "kernels/reference/recurrent_ref.h"
#include "linear_run.h"
#include "ops/packed_recurrent.h"
#include "tersor/recurrent_s8.h"

namespace {

using tersor::Cell;
using tersor::RecurrentArgs;
using tersor::RecurrentSpec;
using tersor::testing::BitsOf;
using tersor::testing::ErrorOf;
using tersor::testing::FloatOf;
using tersor::testing::Holds;
using tersor::testing::Random;
using tersor::testing::SameFloat;
using tersor::testing::UnderEachIsa;

// In units of the last place of the exact result.
double Ulps(float got, double exact) {
  const double unit = std::ldexp(1.0, std::max(std::ilogb(exact), -126) - 23);
  return std::fabs(static_cast<double>(got) - exact) / unit;
}

std::vector<float> ManyFloats() {
  std::vector<float> x = {0.0f, -0.0f, 1e-42f, -1e-42f, 100.0f, -100.0f, INFINITY, -INFINITY, NAN};
  for (uint32_t bits = BitsOf(0x1p-20f); bits < BitsOf(90.0f); bits += 4099) {
    x.push_back(FloatOf(bits));
    x.push_back(-FloatOf(bits));
  }
  return x;
}

struct Layer {
  RecurrentSpec spec;
  std::vector<int8_t> input, hidden;
  std::vector<float> input_scale, hidden_scale, input_bias, hidden_bias;

  Layer(Cell cell, int64_t in, int64_t out, bool bias, Random& random) : spec{cell, in, out, bias} {
    const int64_t width = tersor::GatesOf(cell) * out;
    for (int64_t i = 0; i < width * in; ++i) input.push_back(static_cast<int8_t>(random.Int(-127, 127)));
    for (int64_t i = 0; i < width * out; ++i) hidden.push_back(static_cast<int8_t>(random.Int(-127, 127)));
    for (int64_t i = 0; i < width; ++i) {
      input_scale.push_back(random.Uniform(0.002f, 0.01f));
      hidden_scale.push_back(random.Uniform(0.002f, 0.01f));
      input_bias.push_back(random.Uniform(-1.0f, 1.0f));
      hidden_bias.push_back(random.Uniform(-1.0f, 1.0f));
    }
  }
  std::vector<char> Pack() const {
    std::vector<char> packed(tersor::PackedBytesRecurrent(spec));
    tersor::PackRecurrent(spec,
                          {input.data(), hidden.data(), input_scale.data(), hidden_scale.data(),
                           spec.bias ? input_bias.data() : nullptr, spec.bias ? hidden_bias.data() : nullptr},
                          packed.data(), packed.size());
    return packed;
  }
};

struct Outputs {
  std::vector<float> y, state, cell;
};

struct Sequence {
  std::vector<int64_t> sizes;
  int64_t rows = 0;
  std::vector<float> x, state, cell;

  Sequence(const Layer& layer, std::vector<int64_t> batch_sizes, Random& random) : sizes(std::move(batch_sizes)) {
    for (int64_t size : sizes) rows += size;
    const auto fill = [&](std::vector<float>& to, int64_t count) {
      for (int64_t i = 0; i < count; ++i) to.push_back(random.Uniform(-1.0f, 1.0f));
    };
    fill(x, rows * layer.spec.input);
    fill(state, Batch() * layer.spec.hidden);
    fill(cell, Batch() * layer.spec.hidden);
  }
  int64_t Batch() const { return sizes.empty() ? 0 : sizes[0]; }

  Outputs Run(const Layer& layer, bool reverse, const tersor::Executor& executor = tersor::SerialExecutor()) const {
    const std::vector<char> packed = layer.Pack();
    Outputs out{std::vector<float>(static_cast<size_t>(rows * layer.spec.hidden)), state, cell};
    RecurrentArgs args{};
    args.packed = packed.data();
    args.packed_bytes = packed.size();
    args.steps = static_cast<int64_t>(sizes.size());
    args.batch = Batch();
    args.batch_sizes = sizes.data();
    args.x = x.data();
    args.rows = rows;
    args.ldx = layer.spec.input;
    args.reverse = reverse;
    args.y = out.y.data();
    args.state = out.state.data();
    args.cell = out.cell.data();
    tersor::RecurrentS8(args, executor);
    return out;
  }
};

// The gates of one row by the op whose own tests compare it with its definition.
std::vector<float> GatesOf(const Layer& layer, bool of_input, const float* x) {
  const int64_t k = of_input ? layer.spec.input : layer.spec.hidden;
  const int64_t width = tersor::GatesOf(layer.spec.cell) * layer.spec.hidden;
  std::vector<char> packed(tersor::PackedBytesS8(width, k));
  tersor::PackBeginS8(width, k, packed.data(), packed.size());
  tersor::PackRowsS8(0, width, (of_input ? layer.input : layer.hidden).data(),
                     (of_input ? layer.input_scale : layer.hidden_scale).data(), packed.data(), packed.size());
  std::vector<float> y(static_cast<size_t>(width));
  tersor::LinearS8Args args{};
  args.m = 1;
  args.x = x;
  args.ldx = k;
  args.packed = packed.data();
  args.packed_bytes = packed.size();
  if (layer.spec.bias) args.bias = (of_input ? layer.input_bias : layer.hidden_bias).data();
  args.y = y.data();
  args.ldy = width;
  tersor::LinearS8(args, tersor::SerialExecutor());
  return y;
}

// One sequence alone, step by step; cells in double precision, rounded once.
void CheckByDefinition(const Layer& layer, int64_t steps, bool reverse, Random& random) {
  const Sequence sequence(layer, std::vector<int64_t>(static_cast<size_t>(steps), 1), random);
  const Outputs out = sequence.Run(layer, reverse);
  const int64_t n = layer.spec.hidden, gates = tersor::GatesOf(layer.spec.cell);
  std::vector<float> state = sequence.state, cell = sequence.cell;
  for (int64_t t = 0; t < steps; ++t) {
    const int64_t row = reverse ? steps - 1 - t : t;
    const std::vector<float> x = GatesOf(layer, true, sequence.x.data() + row * layer.spec.input);
    const std::vector<float> h = GatesOf(layer, false, state.data());
    for (int64_t i = 0; i < n; ++i) {
      double xs[4], hs[4];
      for (int64_t g = 0; g < gates; ++g) {
        xs[g] = static_cast<double>(x[static_cast<size_t>(g * n + i)]);
        hs[g] = static_cast<double>(h[static_cast<size_t>(g * n + i)]);
      }
      const size_t at = static_cast<size_t>(i);
      double c = static_cast<double>(cell[at]);
      const double exact = layer.spec.cell == Cell::kGru
                               ? tersor::reference::Gru(xs, hs, static_cast<double>(state[at]))
                               : tersor::reference::Lstm(xs, hs, &c);
      const float got = out.y[static_cast<size_t>(row * n + i)];
      // A few units in the last place of gates below 8, of states below 1 and cells below 8.
      CHECK_OR(std::fabs(static_cast<double>(got) - exact) < 0x1p-19, "%s step %d: y is %a, not %a",
               tersor::ActiveIsa().c_str(), static_cast<int>(t), static_cast<double>(got), exact);
      state[at] = got;  // what the next step begins with
      cell[at] = static_cast<float>(c);
    }
  }
  for (int64_t i = 0; i < n; ++i) CHECK(SameFloat(out.state[static_cast<size_t>(i)], state[static_cast<size_t>(i)]));
}

}  // namespace

TEST(SigmoidAndTanh) {
  const std::vector<float> x = ManyFloats();
  std::vector<float> sigmoid = x, tanh = x;
  const tersor::RecurrentKernel& scalar = *tersor::RunnableKernelSets().front()->recurrent;
  scalar.sigmoid(static_cast<int64_t>(x.size()), sigmoid.data());
  scalar.tanh(static_cast<int64_t>(x.size()), tanh.data());
  double worst_sigmoid = 0, worst_tanh = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    if (std::isnan(x[i])) {
      CHECK(std::isnan(sigmoid[i]) && std::isnan(tanh[i]));
      continue;
    }
    worst_sigmoid = std::max(worst_sigmoid, Ulps(sigmoid[i], tersor::reference::Sigmoid(static_cast<double>(x[i]))));
    if (x[i] != 0.0f) worst_tanh = std::max(worst_tanh, Ulps(tanh[i], std::tanh(static_cast<double>(x[i]))));
  }
  CHECK_OR(worst_sigmoid <= 1.5, "sigmoid is off by %.2f units", worst_sigmoid);
  CHECK_OR(worst_tanh <= 1.44, "tanh is off by %.2f units", worst_tanh);
}

TEST(EveryIsaGivesTheSameBits) {
  const std::vector<float> x = ManyFloats();
  const tersor::RecurrentKernel& scalar = *tersor::RunnableKernelSets().front()->recurrent;
  std::vector<float> sigmoid = x, tanh = x;
  scalar.sigmoid(static_cast<int64_t>(x.size()), sigmoid.data());
  scalar.tanh(static_cast<int64_t>(x.size()), tanh.data());
  UnderEachIsa([&] {
    const tersor::RecurrentKernel& kernel = *tersor::Selected().recurrent;
    std::vector<float> got = x, gotten = x;
    kernel.sigmoid(static_cast<int64_t>(x.size()), got.data());
    kernel.tanh(static_cast<int64_t>(x.size()), gotten.data());
    for (size_t i = 0; i < x.size(); ++i)
      CHECK_OR(SameFloat(got[i], sigmoid[i]) && SameFloat(gotten[i], tanh[i]), "%s differs at %a", kernel.id,
               static_cast<double>(x[i]));
  });
  for (const Cell cell : {Cell::kGru, Cell::kLstm})
    for (const int64_t hidden : {1, 7, 16, 33}) {
      Random random(7);
      const Layer layer(cell, 5, hidden, true, random);
      const Sequence sequence(layer, {3, 3, 2, 1}, random);
      for (const bool reverse : {false, true}) {
        tersor::SetIsaCap("scalar");
        const Outputs expected = sequence.Run(layer, reverse);
        tersor::SetIsaCap("");
        UnderEachIsa([&] {
          const Outputs out = sequence.Run(layer, reverse);
          CHECK_OR(out.y == expected.y && out.state == expected.state && out.cell == expected.cell,
                   "%s differs, hidden=%d", tersor::ActiveIsa().c_str(), static_cast<int>(hidden));
        });
      }
    }
}

TEST(Definition) {
  UnderEachIsa([] {
    Random random(3);
    for (const Cell cell : {Cell::kGru, Cell::kLstm})
      for (const int64_t hidden : {1, 8, 17, 40})
        for (const bool bias : {true, false})
          CheckByDefinition(Layer(cell, 9, hidden, bias, random), 5, hidden == 17, random);
  });
}

// Sequences of a batch do not see one another; a shorter one ends with the state of its last step.
TEST(BatchesAndThreads) {
  Random random(5);
  for (const Cell cell : {Cell::kGru, Cell::kLstm}) {
    const Layer layer(cell, 6, 20, true, random);
    const Sequence together(layer, {4, 3, 3, 1}, random);
    for (const bool reverse : {false, true}) {
      const Outputs out = together.Run(layer, reverse);
      for (int64_t b = 0; b < 4; ++b) {
        Sequence alone(layer, {}, random);
        int64_t row = 0;
        std::vector<int64_t> rows;
        for (int64_t size : together.sizes) {
          if (b < size) rows.push_back(row + b);
          row += size;
        }
        alone.sizes.assign(rows.size(), 1);
        alone.rows = static_cast<int64_t>(rows.size());
        for (int64_t r : rows)
          alone.x.insert(alone.x.end(), together.x.begin() + r * 6, together.x.begin() + (r + 1) * 6);
        alone.state.assign(together.state.begin() + b * 20, together.state.begin() + (b + 1) * 20);
        alone.cell.assign(together.cell.begin() + b * 20, together.cell.begin() + (b + 1) * 20);
        const Outputs own = alone.Run(layer, reverse);
        for (size_t t = 0; t < rows.size(); ++t)
          CHECK(std::equal(own.y.begin() + static_cast<std::ptrdiff_t>(t) * 20,
                           own.y.begin() + static_cast<std::ptrdiff_t>(t + 1) * 20, out.y.begin() + rows[t] * 20));
        CHECK(std::equal(own.state.begin(), own.state.end(), out.state.begin() + b * 20));
      }
      tersor::Executor pool = tersor::PoolExecutor();
      pool.threads = 2;
      CHECK(together.Run(layer, reverse, pool).y == out.y);
    }
  }
}

TEST(TheWayBackAndDamage) {
  Random random(9);
  const Layer layer(Cell::kLstm, 6, 5, true, random);
  const std::vector<char> packed = layer.Pack();
  std::vector<int8_t> input(layer.input.size()), hidden(layer.hidden.size());
  std::vector<float> floats[4];
  for (std::vector<float>& f : floats) f.resize(20);
  tersor::UnpackRecurrent(
      packed.data(), packed.size(),
      {input.data(), hidden.data(), floats[0].data(), floats[1].data(), floats[2].data(), floats[3].data()});
  CHECK(input == layer.input && hidden == layer.hidden);
  CHECK(floats[0] == layer.input_scale && floats[1] == layer.hidden_scale);
  CHECK(floats[2] == layer.input_bias && floats[3] == layer.hidden_bias);
  for (size_t at = 0; at < sizeof(tersor::PackedHeaderRecurrent); ++at)
    for (int value : {0, 1, 3, 77, -1}) {
      std::vector<char> damaged = packed;
      damaged[at] = static_cast<char>(value);
      if (damaged == packed) continue;
      const std::string message = ErrorOf([&] { tersor::ViewPackedRecurrent(damaged.data(), damaged.size()); });
      CHECK_OR(Holds(message, "packed") || at / 8 == 5, "byte %d was accepted", static_cast<int>(at));  // 5: bias
    }
  CHECK(Holds(ErrorOf([&] { tersor::ViewPackedRecurrent(packed.data(), packed.size() - 1); }), "header says"));
}

TEST(ArgumentsAreChecked) {
  Random random(11);
  const Layer layer(Cell::kGru, 3, 4, false, random);
  const auto error = [&](std::vector<int64_t> sizes, int64_t rows) {
    Sequence sequence(layer, {2, 1}, random);
    sequence.sizes = std::move(sizes);
    sequence.rows = rows;
    return ErrorOf([&] { sequence.Run(layer, false); });
  };
  CHECK(error({2, 1}, 3).empty());
  CHECK(error({}, 0).empty());
  CHECK(Holds(error({1, 2}, 3), "do not grow"));
  CHECK(Holds(error({2, 0}, 2), "do not grow"));
  CHECK(Holds(error({2, 1}, 2), "2 rows"));
}

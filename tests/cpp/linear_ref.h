// The whole op by definition, from the pieces of kernels/reference and the scalar activation.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "core/registry.h"
#include "gemm_cases.h"
#include "half_ref.h"
#include "kernels/reference/linear_s8_ref.h"
#include "tersor/linear_s8.h"

namespace tersor::testing {

// One call with its operands as floats; x and residual hold only values that `dtype` represents.
struct LinearCase {
  int64_t m, n, k;
  DType dtype = DType::kF32;
  Activation activation = Activation::kNone;
  bool with_bias = true, with_residual = false;
  float x_scale = 0.0f;
  int32_t x_zero_point = 0;
  std::vector<float> x, bias, residual, scale, input_scale;  // input_scale [k], or empty: not smoothed
  std::vector<int8_t> w;

  LinearCase(int64_t rows, int64_t columns, int64_t depth, uint64_t seed) : m(rows), n(columns), k(depth) {
    Random random(seed);
    w = Weights(Fill::kRandom, n * k, random);
    for (int64_t i = 0; i < m * k; ++i) x.push_back(random.Uniform(-1.5f, 2.0f));
    for (int64_t i = 0; i < m * n; ++i) residual.push_back(random.Uniform(-1.0f, 1.0f));
    for (int64_t j = 0; j < n; ++j) {
      bias.push_back(random.Uniform(-1.0f, 1.0f));
      scale.push_back(random.Uniform(0.1f, 1.0f) / (64.0f * std::sqrt(static_cast<float>(k))));
    }
  }

  float Round(float v) const {
    if (dtype == DType::kF32 || std::isnan(v)) return v;
    return HalfToFloat(dtype, FloatToHalf(dtype, v));
  }
  void Smooth(uint64_t seed) {
    Random random(seed);
    input_scale.clear();
    for (int64_t p = 0; p < k; ++p) input_scale.push_back(random.Uniform(0.01f, 1.0f));
  }
  void Narrow(DType to) {
    dtype = to;
    for (std::vector<float>* values : {&x, &residual})
      for (float& v : *values) v = Round(v);
  }

  reference::RowQuantization ChooseRowOf(const float* row) const {
    float lo = 0.0f, hi = 0.0f;
    bool finite = true;
    for (int64_t p = 0; p < k; ++p) {
      finite = finite && std::isfinite(row[p]);
      lo = std::fmin(lo, row[p]);
      hi = std::fmax(hi, row[p]);
    }
    if (!finite) return reference::ChooseRow(std::nanf(""), std::nanf(""));
    if (x_scale > 0.0f) return {x_scale, 1.0f / x_scale, x_zero_point};
    return reference::ChooseRow(lo, hi);
  }

  // [m][n]; each chunk of kMaxDepthS8 is scaled and added to what is there.
  std::vector<float> Expected() const {
    std::vector<float> y(static_cast<size_t>(m * n));
    std::vector<uint8_t> q(static_cast<size_t>(k));
    for (int64_t i = 0; i < m; ++i) {
      std::vector<float> values(x.begin() + i * k, x.begin() + (i + 1) * k);
      for (size_t p = 0; p < input_scale.size(); ++p) values[p] *= input_scale[p];
      const reference::RowQuantization row = ChooseRowOf(values.data());
      for (size_t p = 0; p < values.size(); ++p)
        q[p] = std::isnan(row.scale) ? uint8_t{0} : reference::QuantizeOne(values[p], row.inv_scale, row.zero_point);
      for (int64_t j = 0; j < n; ++j) y[static_cast<size_t>(i * n + j)] = Element(i, j, q, row);
    }
    RunnableKernelSets().front()->activation->apply(activation, m * n, y.data());
    for (float& v : y) v = Round(v);
    return y;
  }

 private:
  float Element(int64_t i, int64_t j, const std::vector<uint8_t>& q, const reference::RowQuantization& row) const {
    const size_t column = static_cast<size_t>(j);
    float y = 0.0f;
    for (int64_t begin = 0; begin < k; begin += kMaxDepthS8) {
      int32_t acc = 0, col_sum = 0;
      for (int64_t p = begin; p < std::min(begin + kMaxDepthS8, k); ++p) {
        const int32_t weight = w[static_cast<size_t>(j * k + p)];
        acc += int32_t{q[static_cast<size_t>(p)]} * weight;
        col_sum += weight;
      }
      const float first_bias = begin == 0 && with_bias ? bias[column] : 0.0f;
      const float part = reference::Epilogue(acc, row.zero_point, col_sum, row.scale, scale[column], first_bias);
      if (begin > 0)
        y = part + y;
      else
        y = with_residual ? part + residual[static_cast<size_t>(i * n + j)] : part;
    }
    return y;
  }
};

}  // namespace tersor::testing

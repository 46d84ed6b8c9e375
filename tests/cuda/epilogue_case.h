// The operands of an epilogue, and y by definition: kernels/reference and the scalar activation.
#pragma once
#include <cmath>
#include <cstdint>
#include <vector>

#include "../cpp/data.h"
#include "../cpp/half_ref.h"
#include "check.h"
#include "core/registry.h"
#include "kernels/reference/linear_s8_ref.h"
#include "tersor/cuda.h"

namespace tersor::testing {

// An array of a dtype with exactly its bytes, so that the address sanitizer sees the first one behind it.
class Values {
 public:
  Values(DType dtype, size_t count) : dtype_(dtype), bytes_(count * (dtype == DType::kF32 ? 4 : 2), 0xff) {}  // NaN
  void* data() { return bytes_.data(); }
  float Get(size_t i) const {
    if (dtype_ == DType::kF32) return FloatOf(Read<uint32_t>(i));
    return HalfToFloat(dtype_, Read<uint16_t>(i));
  }
  void Set(size_t i, float v) {
    if (dtype_ == DType::kF32)
      std::memcpy(bytes_.data() + i * 4, &v, 4);
    else
      Write(i, std::isnan(v) ? uint16_t{0x7fff} : FloatToHalf(dtype_, v));
  }
  float Round(float v) const {
    return dtype_ == DType::kF32 || std::isnan(v) ? v : HalfToFloat(dtype_, FloatToHalf(dtype_, v));
  }
  void Fill(Random& random, float lo, float hi) {
    const size_t count = bytes_.size() / (dtype_ == DType::kF32 ? 4 : 2);
    for (size_t i = 0; i < count; ++i) Set(i, random.Uniform(lo, hi));
  }

 private:
  template <typename T>
  T Read(size_t i) const {
    T v;
    std::memcpy(&v, bytes_.data() + i * sizeof(T), sizeof v);
    return v;
  }
  void Write(size_t i, uint16_t v) { std::memcpy(bytes_.data() + i * 2, &v, 2); }
  DType dtype_;
  std::vector<uint8_t> bytes_;
};

struct EpilogueKind {
  DType dtype = DType::kF32;
  Activation activation = Activation::kNone;
  bool bias = true, residual = false;
};
// Every dtype, every activation, with and without bias and residual.
constexpr EpilogueKind kEpilogues[] = {
    {DType::kF32, Activation::kNone, false, false}, {DType::kF32, Activation::kGelu, true, true},
    {DType::kBf16, Activation::kRelu, true, false}, {DType::kBf16, Activation::kGeluTanh, false, true},
    {DType::kF16, Activation::kSilu, true, true},   {DType::kF16, Activation::kNone, true, false},
};

// y has `gap` elements between its rows, which stay untouched.
class EpilogueCase {
 public:
  EpilogueCase(const EpilogueKind& kind, int64_t m, int64_t n, float unit, uint64_t seed, int64_t gap = 0)
      : kind_(kind), m_(m), n_(n), ld_(n + gap), y_(kind.dtype, Count()), residual_(kind.dtype, Count()) {
    Random random(seed);
    for (int64_t i = 0; i < m; ++i) {
      row_scale.push_back(random.Uniform(0.01f, 0.02f));
      row_zero.push_back(random.Int(0, 255));
    }
    for (int64_t j = 0; j < n; ++j) {
      col_scale.push_back(random.Uniform(0.5f, 1.0f) * unit);
      bias_.push_back(random.Uniform(-1.0f, 1.0f));
    }
    residual_.Fill(random, -1.0f, 1.0f);
  }

  // col_sum [n] has to outlive the launch.
  cuda::Epilogue Args(const std::vector<int32_t>& col_sum) {
    cuda::Epilogue e = {};
    e.row_scale = row_scale.data();
    e.row_zero = row_zero.data();
    e.col_scale = col_scale.data();
    e.col_sum = col_sum.data();
    e.bias = kind_.bias ? bias_.data() : nullptr;
    e.residual = kind_.residual ? residual_.data() : nullptr;
    e.ldr = ld_;
    e.activation = kind_.activation;
    e.dtype = kind_.dtype;
    e.y = y_.data();
    e.ldy = ld_;
    return e;
  }

  // What follows float(acc - ...) * (...), given for all of y [m][n].
  std::vector<float> Finish(std::vector<float> scaled) const {
    for (int64_t i = 0; i < m_; ++i)
      for (int64_t j = 0; j < n_; ++j) {
        float& v = scaled[static_cast<size_t>(i * n_ + j)];
        v = v + (kind_.bias ? bias_[static_cast<size_t>(j)] : 0.0f);
        if (kind_.residual) v = v + residual_.Get(static_cast<size_t>(i * ld_ + j));
      }
    RunnableKernelSets().front()->activation->apply(kind_.activation, m_ * n_, scaled.data());
    return scaled;
  }
  // acc [m][n] are exact sums.
  std::vector<float> Expected(const std::vector<int32_t>& acc, const std::vector<int32_t>& col_sum) const {
    std::vector<float> scaled(acc.size());
    for (size_t i = 0; i < acc.size(); ++i) {
      const size_t row = i / static_cast<size_t>(n_), column = i % static_cast<size_t>(n_);
      scaled[i] = reference::Epilogue(acc[i], row_zero[row], col_sum[column], row_scale[row], col_scale[column], -0.0f);
    }
    return Finish(scaled);
  }
  // y equals expected, rounded to the dtype, bit for bit, and gaps still hold what they held.
  void Check(const char* what, const std::vector<float>& expected) const {
    for (int64_t i = 0; i < m_; ++i)
      for (int64_t j = 0; j < ld_; ++j) {
        if (i == m_ - 1 && j >= n_) break;
        const float got = y_.Get(static_cast<size_t>(i * ld_ + j));
        const float want = j < n_ ? y_.Round(expected[static_cast<size_t>(i * n_ + j)]) : FloatOf(0x7fc00000u);
        CHECK_OR(SameFloat(got, want), "%s m=%ld n=%ld y[%ld][%ld] is %a, not %a", what, long{m_}, long{n_}, long{i},
                 long{j}, double{got}, double{want});
        if (TooManyFailures()) return;
      }
  }
  const Values& y() const { return y_; }
  int64_t ld() const { return ld_; }

  std::vector<float> row_scale, col_scale;
  std::vector<int32_t> row_zero;

 private:
  size_t Count() const { return static_cast<size_t>((m_ - 1) * ld_ + n_); }
  EpilogueKind kind_;
  int64_t m_, n_, ld_;
  Values y_, residual_;
  std::vector<float> bias_;
};

}  // namespace tersor::testing

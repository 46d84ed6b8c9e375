// Packs a LinearCase, calls the op on strided memory, and compares with the definition bit for bit.
#pragma once
#include <string>
#include <vector>

#include "check.h"
#include "linear_ref.h"
#include "tersor/isa.h"

namespace tersor::testing {

inline std::vector<char> Pack(const LinearCase& c) {
  std::vector<char> packed(PackedBytesS8(c.n, c.k));
  PackBeginS8(c.n, c.k, packed.data(), packed.size());
  if (!c.input_scale.empty()) SetInputScaleS8(c.input_scale.data(), packed.data(), packed.size());
  PackRowsS8(0, c.n, c.w.data(), c.scale.data(), packed.data(), packed.size());
  return packed;
}

// A matrix [rows][columns] of a dtype with `gap` elements between its rows; it ends at an unmapped page.
class Matrix {
 public:
  Matrix(DType dtype, int64_t rows, int64_t columns, int64_t gap)
      : dtype_(dtype), rows_(rows), columns_(columns), stride_(columns + gap), memory_(Bytes()) {
    begin_ = memory_.Place<char>(Bytes());
  }
  void Set(const std::vector<float>& values) {
    for (int64_t i = 0; i < rows_; ++i)
      for (int64_t j = 0; j < columns_; ++j) Put(i * stride_ + j, values[static_cast<size_t>(i * columns_ + j)]);
  }
  float Get(int64_t i, int64_t j) const {
    const char* at = begin_ + (i * stride_ + j) * ElementBytes();
    if (dtype_ != DType::kF32) return HalfToFloat(dtype_, *reinterpret_cast<const uint16_t*>(at));
    return *reinterpret_cast<const float*>(at);
  }
  bool OutsideUntouched() const {
    for (int64_t i = 0; i + 1 < rows_; ++i)
      if (!Fenced::Untouched(begin_ + (i * stride_ + columns_) * ElementBytes(),
                             begin_ + (i + 1) * stride_ * ElementBytes()))
        return false;
    return memory_.FrontIntact();
  }
  void* data() { return begin_; }
  int64_t stride() const { return stride_; }

 private:
  int64_t ElementBytes() const { return dtype_ == DType::kF32 ? 4 : 2; }
  size_t Bytes() const {
    return rows_ == 0 ? 0 : static_cast<size_t>(((rows_ - 1) * stride_ + columns_) * ElementBytes());
  }
  void Put(int64_t at, float v) {
    if (dtype_ == DType::kF32)
      reinterpret_cast<float*>(begin_)[at] = v;
    else  // NaN: a quiet one in both formats
      reinterpret_cast<uint16_t*>(begin_)[at] = std::isnan(v) ? uint16_t{0x7fff} : FloatToHalf(dtype_, v);
  }

  DType dtype_;
  int64_t rows_, columns_, stride_;
  Fenced memory_;
  char* begin_;
};

// An op with the arguments of LinearS8, and how to ask its packed weight for the kernel.
struct LinearOp {
  void (*run)(const LinearS8Args& args, const Executor& executor);
  std::string (*kernel)(const void* packed, size_t packed_bytes);
};
inline const LinearOp kDense = {LinearS8,
                                [](const void* packed, size_t bytes) { return InspectPackedS8(packed, bytes).kernel; }};

inline void CheckLinear(const LinearCase& c, const std::vector<char>& packed, const Executor& executor,
                        const std::vector<float>& expected, bool in_place_residual = false,
                        const LinearOp& op = kDense) {
  Matrix x(c.dtype, c.m, c.k, 3), y(c.dtype, c.m, c.n, 5), residual(c.dtype, c.m, c.n, 1);
  x.Set(c.x);
  residual.Set(c.residual);
  LinearS8Args args{};
  args.m = c.m;
  args.x = x.data();
  args.ldx = x.stride();
  args.dtype = c.dtype;
  args.packed = packed.data();
  args.packed_bytes = packed.size();
  args.bias = c.with_bias ? c.bias.data() : nullptr;
  if (c.with_residual) {
    if (in_place_residual) y.Set(c.residual);
    args.residual = in_place_residual ? y.data() : residual.data();
    args.ldr = in_place_residual ? y.stride() : residual.stride();
  }
  args.activation = c.activation;
  args.x_scale = c.x_scale;
  args.x_zero_point = c.x_zero_point;
  args.y = y.data();
  args.ldy = y.stride();
  op.run(args, executor);
  const std::string kernel = op.kernel(packed.data(), packed.size());
  for (int64_t i = 0; i < c.m; ++i)
    for (int64_t j = 0; j < c.n; ++j) {
      const float got = y.Get(i, j), want = expected[static_cast<size_t>(i * c.n + j)];
      CHECK_OR(SameFloat(got, want),
               "%s under %s, m=%d n=%d k=%d dtype %d activation %d threads %d: y[%d][%d] is %a, not %a", kernel.c_str(),
               ActiveIsa().c_str(), static_cast<int>(c.m), static_cast<int>(c.n), static_cast<int>(c.k),
               static_cast<int>(c.dtype), static_cast<int>(c.activation), executor.threads, static_cast<int>(i),
               static_cast<int>(j), static_cast<double>(got), static_cast<double>(want));
    }
  CHECK_OR(y.OutsideUntouched(), "%s m=%d n=%d wrote outside y", kernel.c_str(), static_cast<int>(c.m),
           static_cast<int>(c.n));
}

// Body() under each instruction set that this CPU runs, worst first.
template <typename Body>
void UnderEachIsa(Body body) {
  for (const std::string& isa : AvailableIsas()) {
    SetIsaCap(isa);
    body();
    SetIsaCap("");
  }
}

}  // namespace tersor::testing

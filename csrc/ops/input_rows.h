// The rows of x of a call, quantised: what every int8 product begins with.
#pragma once
#include <cstdint>
#include <string>

#include "core/registry.h"
#include "ops/quantize_rows.h"
#include "ops/range.h"
#include "tersor/linear_s8.h"

namespace tersor {

inline size_t ElementBytes(DType dtype) { return dtype == DType::kF32 ? 4 : 2; }

// Throws Error, beginning with the op's name, unless x, y and the codes are those of a weight with n rows.
template <typename Args>
void CheckRows(const char* op, const Args& args, int64_t n) {
  const auto fail = [op](const std::string& what) { throw Error(std::string(op) + ": " + what); };
  if (args.m < 0) fail("m=" + std::to_string(args.m) + " is negative");
  if (args.m > 0 && (args.x == nullptr || args.y == nullptr)) fail("x and y must not be null");
  if (args.m > 1 && args.ldy < n) fail("row stride of y is shorter than a row");
  const int32_t dtype = static_cast<int32_t>(args.dtype), activation = static_cast<int32_t>(args.activation);
  if (dtype < 0 || dtype > static_cast<int32_t>(DType::kF16)) fail("unknown dtype code " + std::to_string(dtype));
  if (activation < 0 || activation >= kActivationCount)
    fail("unknown activation code " + std::to_string(activation) + "; codes are 0 to " +
         std::to_string(kActivationCount - 1));
}

// The same, and how x is quantised.
void CheckLinearArgs(const char* op, const LinearS8Args& args, int64_t n);

struct QuantizedRows {
  uint8_t* q;  // row stride lda, zero padded to k_pad
  int64_t lda, k_pad;
  float* scale;
  int32_t* zero_point;
};

struct InputRows {
  const LinearS8Args& args;
  int64_t k;
  const float* input_scale;  // [k], or null
  const Selection& kernels;

  bool rewrites() const { return args.dtype != DType::kF32 || input_scale != nullptr; }
  // row_f32 [k] is used only when the rows are rewritten: widened, or multiplied by input_scale.
  void Quantize(Range rows, const QuantizedRows& to, float* row_f32) const;

 private:
  const void* Source(int64_t row) const;
  RowParams ParamsOf(const float* x) const;
  void QuantizeInto(const QuantizedRows& to, int64_t i, const float* x, const RowParams& params) const;
};

}  // namespace tersor

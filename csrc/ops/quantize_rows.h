#pragma once
#include <cstdint>

#include "kernels/kernel_api.h"

namespace tersor {

struct RowParams {
  float scale, inv_scale;  // scale is NaN for a row that holds NaN or infinity
  int32_t zero_point;
};

// Dynamic: from the row's range. The formula is that of kernels/reference/linear_s8_ref.h.
RowParams ChooseRowParams(const float* range);

// One row of k floats into q [k], zero padded to k_pad; returns the row's sum.
int32_t QuantizeRow(const QuantizeKernel& kernel, int64_t k, int64_t k_pad, const float* x, const RowParams& params,
                    uint8_t* q);

}  // namespace tersor

// What the NEON GEMM kernels do with 8 finished columns of one row: store the integers, or scale them.
//
// Included only by kernels/neon_*/gemm_s8.cc: all of it is in their anonymous namespaces.
#pragma once
#include <arm_neon.h>

#include <cstring>

#include "kernels/kernel_api.h"

namespace {

struct Sums {
  int32x4_t low, high;  // columns 0-3 and 4-7
};

// t * (row_scale * col_scale) + bias, every step rounded once.
float32x4_t ScaleSums(const tersor::GemmS8Args& g, int32_t row, int32_t column, int32x4_t acc) {
  const int32x4_t exact = vsubq_s32(acc, vmulq_n_s32(vld1q_s32(g.col_sum + column), g.row_zero[row]));
  const float32x4_t scale = vmulq_n_f32(vld1q_f32(g.col_scale + column), g.row_scale[row]);
  return vaddq_f32(vmulq_f32(vcvtq_f32_s32(exact), scale), vld1q_f32(g.bias + column));
}

// acc or c receives 8 values, residual (or null) gives 8.
void StoreEight(const tersor::GemmS8Args& g, int32_t row, int32_t column, const Sums& sums, int32_t* acc, float* c,
                const float* residual) {
  if (acc != nullptr) {
    vst1q_s32(acc, sums.low);
    vst1q_s32(acc + 4, sums.high);
    return;
  }
  float32x4_t low = ScaleSums(g, row, column, sums.low), high = ScaleSums(g, row, column + 4, sums.high);
  if (residual != nullptr) {
    low = vaddq_f32(low, vld1q_f32(residual));
    high = vaddq_f32(high, vld1q_f32(residual + 4));
  }
  vst1q_f32(c, low);
  vst1q_f32(c + 4, high);
}

void StoreSums(const tersor::GemmS8Args& g, int32_t row, int32_t column, const Sums& sums) {
  int32_t* acc = g.acc == nullptr ? nullptr : g.acc + row * g.ld_acc + column;
  float* c = g.c == nullptr ? nullptr : g.c + row * g.ldc + column;
  const float* residual = g.residual == nullptr ? nullptr : g.residual + row * g.ldr + column;
  if (g.n - column >= 8) return StoreEight(g, row, column, sums, acc, c, residual);
  // Fewer columns are left: the same through copies of 8.
  const size_t bytes = static_cast<size_t>(g.n - column) * 4;
  int32_t acc8[8];
  float c8[8], residual8[8] = {};
  if (residual != nullptr) std::memcpy(residual8, residual, bytes);
  StoreEight(g, row, column, sums, acc == nullptr ? nullptr : acc8, c8, residual == nullptr ? nullptr : residual8);
  if (acc != nullptr)
    std::memcpy(acc, acc8, bytes);
  else
    std::memcpy(c, c8, bytes);
}

}  // namespace

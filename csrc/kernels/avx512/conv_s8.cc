// Finish: 16 channels a register, their constants loaded once for all rows of a tile; the rest of a row is masked.
#include <immintrin.h>

#include <cstring>

#include "kernels/kernel_api.h"

namespace tersor::avx512 {
namespace {

#include "kernels/conv_s8_loops.h"

template <bool kResidual, bool kHardSwish, bool kFloat>
void FinishColumns(const FinishS8Args& g) {
  const __m512 low = _mm512_set1_ps(g.low), high = _mm512_set1_ps(g.high);
  const __m512 inv_scale = _mm512_set1_ps(g.inv_scale), residual_scale = _mm512_set1_ps(g.residual_scale);
  const __m512 least = _mm512_set1_ps(static_cast<float>(-g.zero)),
               most = _mm512_set1_ps(static_cast<float>(255 - g.zero));
  const __m512i zero = _mm512_set1_epi32(g.zero), residual_zero = _mm512_set1_epi32(g.residual_zero);
  for (int32_t column = 0; column < g.n; column += 16) {
    const int32_t left = g.n - column;
    const __mmask16 live = static_cast<__mmask16>(left >= 16 ? 0xffffu : (1u << left) - 1u);
    const __m512i offset = _mm512_maskz_loadu_epi32(live, g.offset + column);
    const __m512 scale = _mm512_maskz_loadu_ps(live, g.scale + column),
                 bias = _mm512_maskz_loadu_ps(live, g.bias + column);
    for (int32_t i = 0; i < g.m; ++i) {
      const __m512i acc = _mm512_maskz_loadu_epi32(live, g.acc + i * g.ld_acc + column);
      __m512 v = _mm512_add_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(acc, offset)), scale), bias);
      if (kResidual) {
        const __m512i r = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(live, g.residual + i * g.ldr + column));
        v = _mm512_add_ps(v, _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_sub_epi32(r, residual_zero)), residual_scale));
      }
      if (kHardSwish) {
        const __m512 gate = _mm512_min_ps(_mm512_set1_ps(6.0f),
                                          _mm512_max_ps(_mm512_setzero_ps(), _mm512_add_ps(v, _mm512_set1_ps(3.0f))));
        v = _mm512_mul_ps(_mm512_mul_ps(v, gate), _mm512_set1_ps(0x1.555556p-3f));
      } else {
        v = _mm512_min_ps(high, _mm512_max_ps(low, v));  // of NaN both give the second operand
      }
      if (kFloat) {
        _mm512_mask_storeu_ps(g.y_f32 + i * g.ldy + column, live, v);
      } else {
        const __m512 t = _mm512_min_ps(_mm512_max_ps(_mm512_mul_ps(v, inv_scale), least), most);
        const __m512i q =
            _mm512_add_epi32(_mm512_cvt_roundps_epi32(t, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), zero);
        _mm_mask_storeu_epi8(g.y + i * g.ldy + column, live, _mm512_cvtepi32_epi8(q));
      }
    }
  }
}

void Finish(const FinishS8Args& g) {
  using Run = void (*)(const FinishS8Args&);
  static constexpr Run kRuns[] = {FinishColumns<false, false, false>, FinishColumns<false, false, true>,
                                  FinishColumns<false, true, false>,  FinishColumns<false, true, true>,
                                  FinishColumns<true, false, false>,  FinishColumns<true, false, true>,
                                  FinishColumns<true, true, false>,   FinishColumns<true, true, true>};
  kRuns[(g.residual != nullptr ? 4 : 0) + (g.hard_swish ? 2 : 0) + (g.y_f32 != nullptr ? 1 : 0)](g);
}

}  // namespace

const ConvS8Kernel& ConvS8() {
  static constexpr ConvS8Kernel kernel = {"conv_s8_avx512", Finish, MaxRow, SumRow};
  return kernel;
}

}  // namespace tersor::avx512

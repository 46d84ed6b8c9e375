// One lane: a row by 16 columns.
#include <cmath>

#include "kernels/attention_tile.h"
#include "kernels/scalar/sums.h"

namespace tersor::scalar {
namespace {

struct Vector : LaneSums {
  struct I {
    int16_t first, second;
    int32_t sum;
  };
  static constexpr int32_t kRows = 1, kGroups = 1;

  static I Zero() { return {0, 0, 0}; }
  static I Pair(const int16_t* p) { return {p[0], p[1], 0}; }
  static I Pairs(const int16_t* p) { return {p[0], p[1], 0}; }
  static I MulAdd(I acc, I a, I w) {
    return {0, 0, acc.sum + int32_t{a.first} * int32_t{w.first} + int32_t{a.second} * int32_t{w.second}};
  }
  static void Pin(I&) {}
  static F ToFloat(I v) { return static_cast<float>(v.sum); }
  static F Shift(F v, F n) { return Scale(v, n); }
  static F KeepNan(F a, F b) { return b != b ? b : a < b ? b : a; }
  static void Round16(const F* v, int16_t* p) {
    for (int i = 0; i < 16; ++i) p[i] = std::fabs(v[i]) < 32768.0f ? static_cast<int16_t>(std::nearbyintf(v[i])) : 0;
  }
  static F LoadBits(const int16_t* p) {
    F v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }
  static void StoreBits(int16_t* p, F v) { std::memcpy(p, &v, sizeof v); }
  static void Transpose(F*) {}
  static void Interleave(const int16_t* a, const int16_t* b, int16_t* p) {
    for (int i = 0; i < 16; ++i) {
      p[2 * i] = a[i];
      p[2 * i + 1] = b[i];
    }
  }
};

}  // namespace

const AttentionKernel& Attention() {
  static constexpr AttentionKernel kernel = ::Attention<Vector>::Kernel("attention_1x16_scalar");
  return kernel;
}

}  // namespace tersor::scalar

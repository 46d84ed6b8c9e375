// The matrix instructions of the emulation against a plain product, with fragments spelled out register by register.
#include <vector>

#include "check.h"
#include "data.h"
#include "emulation.h"
#include "half_ref.h"

namespace tersor::testing {
namespace {

// A matrix of values that are exact in every type here; Pack writes them as fragments, element (row, k) of A at
// PTX's place for it, spelled out here by registers rather than by the formulas of the emulation.
struct Matrix {
  int rows, depth;
  std::vector<int> value;
  Matrix(int rows_, int depth_) : rows(rows_), depth(depth_), value(static_cast<size_t>(rows_ * depth_)) {}
  int& at(int row, int k) { return value[static_cast<size_t>(row * depth + k)]; }
};

Matrix RandomMatrix(Random& random, int rows, int depth, int lo, int hi) {
  Matrix m(rows, depth);
  for (int& v : m.value) v = random.Int(lo, hi);
  return m;
}

uint32_t Pack4(int a, int b, int c, int d) {
  return static_cast<uint32_t>((a & 255) | (b & 255) << 8 | (c & 255) << 16) | static_cast<uint32_t>(d & 255) << 24;
}
uint32_t Pack2(DType dtype, int a, int b) {
  return FloatToHalf(dtype, static_cast<float>(a)) | uint32_t{FloatToHalf(dtype, static_cast<float>(b))} << 16;
}

struct Fragments {
  uint32_t a[32][4], b[32][4], metadata[32];
  int32_t c[32][4];
  float f[32][4];
};

// PTX: registers a0..a3 are (g, low k), (g + 8, low k), (g, high k), (g + 8, high k); b0, b1, ... ascend in k.
void PackBytes(Matrix& a, Matrix& b, Fragments& f) {
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane / 4, k = lane % 4 * 4;
    for (int i = 0; i < 4; ++i) {
      const int row = i == 1 || i == 3 ? g + 8 : g, at = i >= 2 ? k + 16 : k;
      f.a[lane][i] = Pack4(a.at(row, at), a.at(row, at + 1), a.at(row, at + 2), a.at(row, at + 3));
    }
    for (int i = 0; i < b.depth / 16; ++i)
      f.b[lane][i] =
          Pack4(b.at(g, k + 16 * i), b.at(g, k + 16 * i + 1), b.at(g, k + 16 * i + 2), b.at(g, k + 16 * i + 3));
  }
}
void PackHalves(DType dtype, Matrix& a, Matrix& b, Fragments& f) {
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane / 4, k = lane % 4 * 2;
    for (int i = 0; i < 4; ++i) {
      const int row = i == 1 || i == 3 ? g + 8 : g, at = i >= 2 ? k + 8 : k;
      f.a[lane][i] = Pack2(dtype, a.at(row, at), a.at(row, at + 1));
    }
    for (int i = 0; i < b.depth / 8; ++i) f.b[lane][i] = Pack2(dtype, b.at(g, k + 8 * i), b.at(g, k + 8 * i + 1));
  }
}

// Lane 4 g + q holds c[g][2 q], c[g][2 q + 1], c[g + 8][2 q], c[g + 8][2 q + 1].
template <typename Got>
void CheckProduct(Matrix& a, Matrix& b, const Got& got, int start) {
  for (int row = 0; row < 16; ++row)
    for (int column = 0; column < 8; ++column) {
      int want = start;
      for (int k = 0; k < a.depth; ++k) want += a.at(row, k) * b.at(column, k);
      const auto value = got[row % 8 * 4 + column / 2][(row >= 8 ? 2 : 0) + column % 2];
      CHECK_OR(static_cast<double>(value) == want, "row %d column %d: %g, not %d", row, column,
               static_cast<double>(value), want);
    }
}

enum class Kind { kU8S8, kS8U8, kF16, kBf16, kSparseS8U8, kSparseU8S8, kSparseF16, kSparseF16Selector1 };
Fragments fragments;

void MmaKernel(int kind) {
  Fragments& f = fragments;
  const int lane = static_cast<int>(threadIdx.x);
  switch (static_cast<Kind>(kind)) {
    case Kind::kU8S8:
      return emulate::MmaU8S8(f.c[lane], f.a[lane], f.b[lane]);
    case Kind::kS8U8:
      return emulate::MmaS8U8(f.c[lane], f.a[lane], f.b[lane]);
    case Kind::kF16:
      return emulate::MmaF16(f.f[lane], f.a[lane], f.b[lane]);
    case Kind::kBf16:
      return emulate::MmaBf16(f.f[lane], f.a[lane], f.b[lane]);
    case Kind::kSparseS8U8:
      return emulate::MmaSparseS8U8(f.c[lane], f.a[lane], f.b[lane], f.metadata[lane]);
    case Kind::kSparseU8S8:
      return emulate::MmaSparseU8S8(f.c[lane], f.a[lane], f.b[lane], f.metadata[lane]);
    case Kind::kSparseF16:
      return emulate::MmaSparseF16(f.f[lane], f.a[lane], f.b[lane], f.metadata[lane], 0);
    case Kind::kSparseF16Selector1:
      return emulate::MmaSparseF16(f.f[lane], f.a[lane], f.b[lane], f.metadata[lane], 1);
  }
}

void RunMma(Kind kind, int start) {
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 4; ++i) {
      fragments.c[lane][i] = start;
      fragments.f[lane][i] = static_cast<float>(start);
    }
  emulate::Launch(MmaKernel, dim3(1), dim3(32), 0, nullptr, static_cast<int>(kind));
}

// `whole` is 2:4 sparse; `kept` gets its half, and place(row, group) the two places in each group of four.
Matrix KeepTwoOfFour(Random& random, int depth, int lo, int hi, Matrix& kept, std::vector<int>& places) {
  Matrix whole(16, depth);
  for (int row = 0; row < 16; ++row)
    for (int group = 0; group < depth / 4; ++group) {
      const int first = random.Int(0, 2), second = random.Int(first + 1, 3);
      whole.at(row, 4 * group + first) = kept.at(row, 2 * group) = random.Int(lo, hi);
      whole.at(row, 4 * group + second) = kept.at(row, 2 * group + 1) = random.Int(lo, hi);
      places.push_back(first | second << 2);
    }
  return whole;
}

TEST(MmaBytes) {
  Random random(1);
  for (int round = 0; round < 3; ++round) {
    Matrix a = RandomMatrix(random, 16, 32, 0, 255), b = RandomMatrix(random, 8, 32, -128, 127);
    PackBytes(a, b, fragments);
    RunMma(Kind::kU8S8, 7);
    CheckProduct(a, b, fragments.c, 7);
    a = RandomMatrix(random, 16, 32, -128, 127), b = RandomMatrix(random, 8, 32, 0, 255);
    PackBytes(a, b, fragments);
    RunMma(Kind::kS8U8, -7);
    CheckProduct(a, b, fragments.c, -7);
  }
}

TEST(MmaHalves) {
  Random random(2);
  for (const DType dtype : {DType::kF16, DType::kBf16}) {
    Matrix a = RandomMatrix(random, 16, 16, -100, 100), b = RandomMatrix(random, 8, 16, -100, 100);
    PackHalves(dtype, a, b, fragments);
    RunMma(dtype == DType::kF16 ? Kind::kF16 : Kind::kBf16, 3);
    CheckProduct(a, b, fragments.f, 3);
  }
}

// A word of metadata holds the places of 8 groups of one row; lanes 4 g and 4 g + 1 have rows g and g + 8 of the
// first 32 columns, lanes 4 g + 2 and 4 g + 3 those of the last 32.
TEST(MmaSparseBytes) {
  Random random(3);
  for (const bool signed_weights : {true, false}) {
    Matrix kept(16, 32);
    std::vector<int> places;
    Matrix a = KeepTwoOfFour(random, 64, signed_weights ? -128 : 0, signed_weights ? 127 : 255, kept, places);
    Matrix b = RandomMatrix(random, 8, 64, signed_weights ? 0 : -128, signed_weights ? 255 : 127);
    PackBytes(kept, b, fragments);
    for (int lane = 0; lane < 32; ++lane) {
      const int row = lane / 4 + (lane % 2 == 1 ? 8 : 0), first = lane % 4 >= 2 ? 8 : 0;
      fragments.metadata[lane] = 0;
      for (int i = 0; i < 8; ++i)
        fragments.metadata[lane] |= static_cast<uint32_t>(places[static_cast<size_t>(row * 16 + first + i)]) << 4 * i;
    }
    RunMma(signed_weights ? Kind::kSparseS8U8 : Kind::kSparseU8S8, 5);
    CheckProduct(a, b, fragments.c, 5);
  }
}

// The low half of a word belongs to row g, the high half to g + 8; the first lane of the selected pair has the first 16
// columns, the second the last. Other lanes do not matter.
TEST(MmaSparseHalves) {
  Random random(4);
  for (const int selector : {0, 1}) {
    Matrix kept(16, 16);
    std::vector<int> places;
    Matrix a = KeepTwoOfFour(random, 32, -50, 50, kept, places), b = RandomMatrix(random, 8, 32, -50, 50);
    PackHalves(DType::kF16, kept, b, fragments);
    for (int lane = 0; lane < 32; ++lane) {
      fragments.metadata[lane] = 0xdeadbeef;
      if (lane % 4 / 2 != selector) continue;
      fragments.metadata[lane] = 0;
      for (int i = 0; i < 8; ++i) {
        const int row = lane / 4 + 8 * (i / 4), group = lane % 2 * 4 + i % 4;
        fragments.metadata[lane] |= static_cast<uint32_t>(places[static_cast<size_t>(row * 8 + group)]) << 4 * i;
      }
    }
    RunMma(selector == 0 ? Kind::kSparseF16 : Kind::kSparseF16Selector1, -2);
    CheckProduct(a, b, fragments.f, -2);
  }
}

}  // namespace
}  // namespace tersor::testing

// Matrix instructions. In all of them g = lane / 4 and q = lane % 4. Values of a fragment are numbered from the low
// bits of its first register on; where value i lies in the matrix is what the functions RowOfA, ColumnOfA ... say.
#include "emulation.h"
#include "scheduler.h"

namespace emulate {
namespace {

constexpr uint32_t kFull = 0xffffffffu;
constexpr int kRows = 16, kColumns = 8;  // of C, in every instruction here

// --- Fragments. `width` is how many values a register holds: 4 bytes or 2 halves.
int RowOfA(int lane, int i, int width) { return lane / 4 + 8 * (i / width % 2); }
int DepthOfA(int lane, int i, int width) { return lane % 4 * width + i % width + 4 * width * (i / (2 * width)); }
int ColumnOfB(int lane) { return lane / 4; }
int DepthOfB(int lane, int i, int width) { return lane % 4 * width + i % width + 4 * width * (i / width); }
int RowOfC(int lane, int i) { return lane / 4 + 8 * (i / 2); }
int ColumnOfC(int lane, int i) { return lane % 4 * 2 + i % 2; }

// The two bits that say which of its group of four columns kept value `kept` of `row` is. A lane's word covers 8
// groups of one row (bytes) or 4 groups of rows g and g + 8 (halves, where two lanes of each four have a say).
int MetadataOf(const uint32_t (&words)[32], int row, int kept, int width, int selector) {
  const int group = kept / 2, quad = 4 * (row % 8);
  if (width == 4) return words[quad + row / 8 + 2 * (group / 8)] >> (4 * (group % 8) + 2 * (kept % 2)) & 3;
  return words[quad + 2 * selector + group / 4] >> (16 * (row / 8) + 4 * (group % 4) + 2 * (kept % 2)) & 3;
}

struct Bytes {  // u8 or s8 by s8, int32 sums that wrap
  using Sum = int32_t;
  static constexpr int kWidth = 4, kDepth = 32;
};
struct Halves {  // f16 or bf16, float sums
  using Sum = float;
  static constexpr int kWidth = 2, kDepth = 16;
};
struct U8 : Bytes {
  static int32_t Get(const uint32_t* r, int i) { return static_cast<int32_t>(r[i / 4] >> 8 * (i % 4) & 255u); }
};
struct S8 : Bytes {
  static int32_t Get(const uint32_t* r, int i) { return static_cast<int8_t>(r[i / 4] >> 8 * (i % 4)); }
};
struct F16 : Halves {
  static float Get(const uint32_t* r, int i) { return __half2float({static_cast<uint16_t>(r[i / 2] >> 16 * (i % 2))}); }
};
struct Bf16 : Halves {
  static float Get(const uint32_t* r, int i) {
    return __bfloat162float({static_cast<uint16_t>(r[i / 2] >> 16 * (i % 2))});
  }
};

inline int32_t MultiplyAdd(int32_t c, int32_t a, int32_t b) {
  return static_cast<int32_t>(static_cast<uint32_t>(c) + static_cast<uint32_t>(a * b));
}
// The device keeps more bits within one instruction; tests allow for that or use values whose sums are exact.
inline float MultiplyAdd(float c, float a, float b) { return c + a * b; }

struct MmaLane {
  void* c;
  const uint32_t *a, *b;
  uint32_t metadata;
  int selector;
};

template <typename A, bool kSparse>
void GatherA(void** lanes, typename A::Sum (&a)[kRows][64]) {
  constexpr int kWidth = A::kWidth;
  uint32_t metadata[32];
  const int selector = static_cast<MmaLane*>(lanes[0])->selector;
  for (int lane = 0; lane < 32; ++lane) metadata[lane] = static_cast<MmaLane*>(lanes[lane])->metadata;
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 4 * kWidth; ++i) {
      const int row = RowOfA(lane, i, kWidth);
      int k = DepthOfA(lane, i, kWidth);
      if (kSparse) {
        const int place = MetadataOf(metadata, row, k, kWidth, selector);
        if (k % 2 == 1 && place <= MetadataOf(metadata, row, k - 1, kWidth, selector))
          Fail("ordered metadata: the two indices of a group must ascend (row %d)", row);
        k = k / 2 * 4 + place;
      }
      a[row][k] = A::Get(static_cast<MmaLane*>(lanes[lane])->a, i);
    }
}

template <typename A, typename B, bool kSparse>
void Multiply(void** lanes, uint32_t) {
  using Sum = typename A::Sum;
  constexpr int kDepth = A::kDepth * (kSparse ? 2 : 1), kWidth = A::kWidth;
  ++counters.mma;
  Sum a[kRows][64] = {}, b[kColumns][64];
  GatherA<A, kSparse>(lanes, a);
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < kDepth / 4; ++i)
      b[ColumnOfB(lane)][DepthOfB(lane, i, kWidth)] = B::Get(static_cast<MmaLane*>(lanes[lane])->b, i);
  for (int lane = 0; lane < 32; ++lane) {
    Sum* c = static_cast<Sum*>(static_cast<MmaLane*>(lanes[lane])->c);
    for (int i = 0; i < 4; ++i) {
      const Sum *x = a[RowOfC(lane, i)], *y = b[ColumnOfC(lane, i)];
      for (int k = 0; k < kDepth; ++k) c[i] = MultiplyAdd(c[i], x[k], y[k]);
    }
  }
}

template <typename A, typename B, bool kSparse>
void Mma(const char* name, void* c, const uint32_t* a, const uint32_t* b, uint32_t metadata = 0, int selector = 0) {
  MmaLane mine = {c, a, b, metadata, selector};
  Collective(name, kFull, &mine, Multiply<A, B, kSparse>);
}

struct LdmatrixLane {
  uint32_t* r;
  int count;
  bool transpose;
  const char* row;
};

// Rows of matrix i are at the addresses of lanes 8 i .. 8 i + 7. Lane 4 g + q gets halves 2 q, 2 q + 1 of row g, or, of
// the transposed matrix, of column g.
void LoadMatrices(void** lanes, uint32_t) {
  const LdmatrixLane* in[32];
  for (int lane = 0; lane < 32; ++lane) in[lane] = static_cast<LdmatrixLane*>(lanes[lane]);
  for (int i = 0; i < in[0]->count; ++i) {
    uint16_t matrix[8][8];
    int in_bank[8] = {};  // rows, by which 16 bytes of the 128 that all banks give at once; equal addresses count once
    for (int row = 0; row < 8; ++row) {
      const char* address = in[8 * i + row]->row;
      std::memcpy(matrix[row], address, 16);
      bool seen = false;
      for (int other = 0; other < row; ++other) seen = seen || in[8 * i + other]->row == address;
      if (!seen) ++in_bank[reinterpret_cast<uintptr_t>(address) / 16 % 8];
    }
    ++counters.ldmatrix;
    counters.ldmatrix_wavefronts += static_cast<uint64_t>(*std::max_element(in_bank, in_bank + 8));
    for (int lane = 0; lane < 32; ++lane) {
      const int g = lane / 4, q = lane % 4;
      const uint16_t low = in[0]->transpose ? matrix[2 * q][g] : matrix[g][2 * q];
      const uint16_t high = in[0]->transpose ? matrix[2 * q + 1][g] : matrix[g][2 * q + 1];
      in[lane]->r[i] = uint32_t{high} << 16 | low;
    }
  }
}

}  // namespace

void LoadMatrix(uint32_t* r, int count, const void* row, bool transpose) {
  if (current->lane < 8 * count) {
    if (reinterpret_cast<uintptr_t>(row) % 16 != 0) Fail("misaligned: ldmatrix row");
    CheckAccess(row, 16, false);
  }
  LdmatrixLane mine = {r, count, transpose, static_cast<const char*>(row)};
  Collective(transpose ? "ldmatrix.trans" : "ldmatrix", kFull, &mine, LoadMatrices);
}

void MmaU8S8(int32_t* c, const uint32_t* a, const uint32_t* b) { Mma<U8, S8, false>("mma.u8.s8", c, a, b); }
void MmaS8U8(int32_t* c, const uint32_t* a, const uint32_t* b) { Mma<S8, U8, false>("mma.s8.u8", c, a, b); }
void MmaF16(float* c, const uint32_t* a, const uint32_t* b) { Mma<F16, F16, false>("mma.f16", c, a, b); }
void MmaBf16(float* c, const uint32_t* a, const uint32_t* b) { Mma<Bf16, Bf16, false>("mma.bf16", c, a, b); }
void MmaSparseS8U8(int32_t* c, const uint32_t* a, const uint32_t* b, uint32_t metadata) {
  Mma<S8, U8, true>("mma.sp.s8.u8", c, a, b, metadata);
}
void MmaSparseU8S8(int32_t* c, const uint32_t* a, const uint32_t* b, uint32_t metadata) {
  Mma<U8, S8, true>("mma.sp.u8.s8", c, a, b, metadata);
}
void MmaSparseF16(float* c, const uint32_t* a, const uint32_t* b, uint32_t metadata, int selector) {
  if (selector != 0 && selector != 1) Fail("mma.sp.f16: selector %d", selector);
  Mma<F16, F16, true>(selector == 0 ? "mma.sp.f16 selector 0" : "mma.sp.f16 selector 1", c, a, b, metadata, selector);
}

}  // namespace emulate

// Runs CUDA kernels as host C++: see README.md. Kernels include this through kernels/cuda/ptx.cuh when TERSOR_EMULATE
// is defined.
#pragma once
#include "cuda_language.h"

namespace emulate {

// --- Running a kernel.

struct Thread {
  uint3 index;
  int linear, lane, warp;
};
extern Thread* current;  // the CUDA thread that runs; null outside of kernels
extern uint3 block_index;
extern dim3 block_size, grid_size;

// 0: blocks, and the threads within one, run in order. Otherwise seeds a random schedule of both.
void SetSchedule(uint32_t seed);

struct Counters {
  uint64_t blocks, barriers, mma;
  uint64_t ldmatrix, ldmatrix_wavefronts;  // 8x8 matrices read; shared-memory cycles that they take, 1 each at best
  uint64_t shared, shared_wavefronts;      // warp accesses announced by SharedAccess; their cycles
  uint64_t async_copies, async_bytes;      // bytes read from global memory
};
extern Counters counters;

// Runs body once for every CUDA thread of the grid. A mistake of the kernel ends the program with a message and
// exit code 86.
void RunGrid(dim3 grid, dim3 block, size_t shared_bytes, void (*body)(void*), void* context);
template <typename... Params, typename... Args>
int Launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes, void* /*stream*/, Args... args) {
  auto body = [=] { kernel(static_cast<Params>(args)...); };
  RunGrid(grid, block, shared_bytes, [](void* context) { (*static_cast<decltype(body)*>(context))(); }, &body);
  return cudaSuccess;
}
constexpr int kMultiprocessors = 4;  // few, so that small tests reach what large problems do on a GPU
unsigned char* DynamicShared();      // of the running block: exactly shared_bytes, aligned to 128
[[noreturn]] void Fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// --- Block and warp operations.

void Barrier();
// Every lane of `mask` brings a pointer and waits; the last one runs fn over the 32 pointers. The lanes must meet at
// the same `name` with the same mask.
void Collective(const char* name, uint32_t mask, void* mine, void (*fn)(void** lanes, uint32_t mask));
void SyncWarp(uint32_t mask);
enum class Shuffle { kIndex, kXor, kUp, kDown };
uint32_t ShuffleBits(Shuffle kind, uint32_t mask, uint32_t value, int argument, int width);
uint32_t Ballot(uint32_t mask, bool predicate);
void Fence();  // __threadfence

// --- Memory. Addresses are checked: bounds (with the address sanitizer), races (thread sanitizer), alignment.

// The data arrives at the CopyAsyncWait that covers it; until then shared memory holds garbage. Only the first
// src_bytes are read, the rest of `bytes` (4, 8 or 16) becomes 0.
void CopyAsync(void* shared, const void* global, int bytes, int src_bytes);
inline void CopyAsync16(void* shared, const void* global, int src_bytes) { CopyAsync(shared, global, 16, src_bytes); }
void CopyAsyncCommit();
void CopyAsyncWait(int pending);
uint4 LoadStream16(const void* global);
uint32_t IncrementWrap(uint32_t* global, uint32_t last);
// A plain access to shared memory by every lane of a full warp, `bytes` (4, 8 or 16) each, for the bank counters only.
void SharedAccess(const void* p, int bytes);

// --- Matrix instructions with the fragment layouts of the PTX ISA; README.md lists them.

void LoadMatrix(uint32_t* r, int count, const void* row, bool transpose);  // count 1, 2 or 4
inline void LoadMatrix4(uint32_t* r, const void* row, bool transpose) { LoadMatrix(r, 4, row, transpose); }
void MmaU8S8(int32_t* c, const uint32_t* a, const uint32_t* b);  // m16n8k32
void MmaS8U8(int32_t* c, const uint32_t* a, const uint32_t* b);
void MmaF16(float* c, const uint32_t* a, const uint32_t* b);  // m16n8k16
void MmaBf16(float* c, const uint32_t* a, const uint32_t* b);
// A is 2:4 sparse and holds the kept half of its columns; the metadata is ordered.
void MmaSparseS8U8(int32_t* c, const uint32_t* a, const uint32_t* b, uint32_t metadata);  // m16n8k64
void MmaSparseU8S8(int32_t* c, const uint32_t* a, const uint32_t* b, uint32_t metadata);
void MmaSparseF16(float* c, const uint32_t* a, const uint32_t* b, uint32_t metadata, int selector);  // m16n8k32

// Pairs of 16-bit floats. A float32 sum of two of them has enough bits that rounding it again is rounding once.
inline uint32_t SubtractF16x2(uint32_t a, uint32_t b) {
  const auto one = [](uint32_t x, uint32_t y) {
    const auto value = [](uint32_t bits) { return __half2float(__ushort_as_half(static_cast<uint16_t>(bits))); };
    return uint32_t{__half_as_ushort(__float2half_rn(value(x) - value(y)))};
  };
  return one(a, b) | one(a >> 16, b >> 16) << 16;
}
inline uint32_t AddBf16x2(uint32_t a, uint32_t b) {
  const auto one = [](uint32_t x, uint32_t y) {
    const auto value = [](uint32_t bits) { return BitCast<float>(bits << 16); };
    return uint32_t{__bfloat16_as_ushort(__float2bfloat16_rn(value(x) + value(y)))};
  };
  return one(a, b) | one(a >> 16, b >> 16) << 16;
}

}  // namespace emulate

#define threadIdx (::emulate::current->index)
#define blockIdx (::emulate::block_index)
#define blockDim (::emulate::block_size)
#define gridDim (::emulate::grid_size)

inline void __syncthreads() { emulate::Barrier(); }
inline void __syncwarp(unsigned mask = 0xffffffffu) { emulate::SyncWarp(mask); }
inline void __threadfence() { emulate::Fence(); }
inline unsigned __ballot_sync(unsigned mask, int predicate) { return emulate::Ballot(mask, predicate != 0); }
inline int __any_sync(unsigned mask, int predicate) { return emulate::Ballot(mask, predicate != 0) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return emulate::Ballot(mask, predicate == 0) == 0; }
template <typename T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32) {
  const uint32_t bits = BitCast<uint32_t>(value);
  return BitCast<T>(emulate::ShuffleBits(emulate::Shuffle::kIndex, mask, bits, lane, width));
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32) {
  const uint32_t bits = BitCast<uint32_t>(value);
  return BitCast<T>(emulate::ShuffleBits(emulate::Shuffle::kXor, mask, bits, lane_mask, width));
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const uint32_t bits = BitCast<uint32_t>(value);
  return BitCast<T>(emulate::ShuffleBits(emulate::Shuffle::kUp, mask, bits, static_cast<int>(delta), width));
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const uint32_t bits = BitCast<uint32_t>(value);
  return BitCast<T>(emulate::ShuffleBits(emulate::Shuffle::kDown, mask, bits, static_cast<int>(delta), width));
}

// Relaxed, as on the device.
template <typename T>
T atomicAdd(T* p, T value) {
  static_assert(sizeof(T) == 4, "32 bits");
  uint32_t* word = reinterpret_cast<uint32_t*>(p);
  uint32_t old = __atomic_load_n(word, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n(word, &old, BitCast<uint32_t>(static_cast<T>(BitCast<T>(old) + value)), false,
                                      __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  return BitCast<T>(old);
}
inline int atomicExch(int* p, int value) { return __atomic_exchange_n(p, value, __ATOMIC_RELAXED); }

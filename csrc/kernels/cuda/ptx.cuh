// The only file with PTX: one wrapper per instruction, each with the reason why it is written by hand, and the few
// things that differ between a GPU and the host emulation of tests/cuda/emulation, which TERSOR_EMULATE selects.
// A fragment is what one lane holds of a matrix; lane = 4 * g + q. Operands are named as in the PTX manual.
#pragma once
#include <cstddef>
#include <cstdint>

#ifdef TERSOR_EMULATE

// Supplies the launch, threadIdx and its kind, the warp functions, the rounding intrinsics, and `emulate::`, which is
// called below, each function with the meaning of the instruction that its wrapper stands for.
#include "emulation.h"

#define TERSOR_DYNAMIC_SHARED(name) unsigned char* const name = static_cast<unsigned char*>(emulate::DynamicShared())
#define TERSOR_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  emulate::Launch(kernel, grid, block, shared_bytes, stream, __VA_ARGS__)

namespace tersor::cuda::ptx {

inline int MultiprocessorCount() { return emulate::kMultiprocessors; }

inline void MmaU8S8(int32_t (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { emulate::MmaU8S8(c, a, b); }
inline void MmaS8U8(int32_t (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { emulate::MmaS8U8(c, a, b); }
inline void MmaF16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { emulate::MmaF16(c, a, b); }
inline void MmaBf16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { emulate::MmaBf16(c, a, b); }
inline void MmaSparseS8U8(int32_t (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[4], uint32_t metadata) {
  emulate::MmaSparseS8U8(c, a, b, metadata);
}
inline void MmaSparseU8S8(int32_t (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[4], uint32_t metadata) {
  emulate::MmaSparseU8S8(c, a, b, metadata);
}
template <int kSelector>
inline void MmaSparseF16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[4], uint32_t metadata) {
  emulate::MmaSparseF16(c, a, b, metadata, kSelector);
}
inline void LoadMatrix4(uint32_t (&r)[4], const void* row) { emulate::LoadMatrix4(r, row, false); }
inline void LoadMatrix4Transposed(uint32_t (&r)[4], const void* row) { emulate::LoadMatrix4(r, row, true); }
inline void CopyAsync16(void* shared, const void* global, int bytes) { emulate::CopyAsync16(shared, global, bytes); }
inline void CopyAsyncCommit() { emulate::CopyAsyncCommit(); }
template <int kPending>
inline void CopyAsyncWait() {
  emulate::CopyAsyncWait(kPending);
}
inline uint32_t SubtractF16x2(uint32_t a, uint32_t b) { return emulate::SubtractF16x2(a, b); }
inline uint32_t AddBf16x2(uint32_t a, uint32_t b) { return emulate::AddBf16x2(a, b); }
inline uint4 LoadStream16(const void* global) { return emulate::LoadStream16(global); }
inline uint32_t IncrementWrap(uint32_t* global, uint32_t last) { return emulate::IncrementWrap(global, last); }

}  // namespace tersor::cuda::ptx

#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

// Dynamic shared memory alone, so that the emulation can give every block memory of exactly its size.
#define TERSOR_DYNAMIC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]
#define TERSOR_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  ::tersor::cuda::ptx::Launch(kernel, grid, block, shared_bytes, stream, __VA_ARGS__)

namespace tersor::cuda::ptx {

// Launches and returns the cudaError_t. More than 48 KiB of shared memory must be asked for.
template <typename... Parameters, typename... Values>
int Launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, void* stream,
           const Values&... values) {
  if (shared_bytes > 48 * 1024) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
    if (error != cudaSuccess) return error;
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  return cudaLaunchKernelEx(&config, kernel, values...);
}

// Of the current device; 0 when there is none.
inline int MultiprocessorCount() {
  int device = 0, count = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return 0;
  return cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) == cudaSuccess ? count : 0;
}

__device__ __forceinline__ uint32_t SharedAddress(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// c[16][8] += a[16][32] b[32][8]: unsigned activations meet signed weights, so no zero point has to be moved.
__device__ __forceinline__ void MmaU8S8(int32_t (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// The same with the weights as the 16 rows: 8 activation rows then cost one instruction, not two.
__device__ __forceinline__ void MmaS8U8(int32_t (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.u8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// c[16][8] += a[16][16] b[16][8] in float32: the WMMA API hides which lane holds what.
__device__ __forceinline__ void MmaF16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// As MmaF16; every int8 is exact in bfloat16 too, and its exponents are those of float32.
__device__ __forceinline__ void MmaBf16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// c[16][8] += a[16][64] b[64][8] where a, the weight, is 2:4 sparse: half the bytes and half the time. The ordered form
// of the metadata is the one that is not emulated slowly.
__device__ __forceinline__ void MmaSparseS8U8(int32_t (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[4],
                                              uint32_t metadata) {
  asm volatile(
      "mma.sp::ordered_metadata.sync.aligned.m16n8k64.row.col.s32.s8.u8.s32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9,%10,%11}, {%0,%1,%2,%3}, %12, 0x0;"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(b[2]), "r"(b[3]), "r"(metadata));
}

// The same for sparse activations.
__device__ __forceinline__ void MmaSparseU8S8(int32_t (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[4],
                                              uint32_t metadata) {
  asm volatile(
      "mma.sp::ordered_metadata.sync.aligned.m16n8k64.row.col.s32.u8.s8.s32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9,%10,%11}, {%0,%1,%2,%3}, %12, 0x0;"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(b[2]), "r"(b[3]), "r"(metadata));
}

// c[16][8] += a[16][32] b[32][8] in float32, a 2:4 sparse. kSelector says which pair of lanes of each four holds the
// metadata: 0 or 1.
template <int kSelector>
__device__ __forceinline__ void MmaSparseF16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[4],
                                             uint32_t metadata) {
  asm volatile(
      "mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32.f16.f16.f32 "
      "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9,%10,%11}, {%0,%1,%2,%3}, %12, %13;"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(b[2]), "r"(b[3]), "r"(metadata),
        "n"(kSelector));
}

// Four 8x8 matrices of 16-bit values (8 rows of 16 bytes) from shared memory into fragments; lane i names row i % 8 of
// matrix i / 8. It spares four loads per lane and has no bank conflicts when the rows are swizzled.
__device__ __forceinline__ void LoadMatrix4(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(SharedAddress(row))
               : "memory");
}

// The same, each matrix transposed: for an operand that lies the other way round.
__device__ __forceinline__ void LoadMatrix4Transposed(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(SharedAddress(row))
               : "memory");
}

// 16 bytes to shared memory past the registers, the first `bytes` (0 to 16) read and the rest zero: copies in flight
// cost no registers, and edges no branch.
__device__ __forceinline__ void CopyAsync16(void* shared, const void* global, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(SharedAddress(shared)), "l"(global), "r"(bytes)
               : "memory");
}

// Closes the group of this thread's copies so far: what CopyAsyncWait counts.
__device__ __forceinline__ void CopyAsyncCommit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most kPending of this thread's groups are in flight: the ring needs just its oldest.
template <int kPending>
__device__ __forceinline__ void CopyAsyncWait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// a - b, both pairs of float16: the type itself is not part of what kernels and emulation share.
__device__ __forceinline__ uint32_t SubtractF16x2(uint32_t a, uint32_t b) {
  uint32_t difference;
  asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(difference) : "r"(a), "r"(b));
  return difference;
}

// a + b, both pairs of bfloat16, as a * 1 + b: before compute capability 9.0 there is no plain addition.
__device__ __forceinline__ uint32_t AddBf16x2(uint32_t a, uint32_t b) {
  uint32_t sum;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "r"(0x3f803f80u), "r"(b));
  return sum;
}

// 16 bytes that are read once: they need no place in the first cache.
__device__ __forceinline__ uint4 LoadStream16(const void* global) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(global));
  return v;
}

// old = *global; *global = old >= last ? 0 : old + 1. Released and acquired at device scope, so that the block that
// arrives last sees what the others wrote; and the counter is 0 again for the next call.
__device__ __forceinline__ uint32_t IncrementWrap(uint32_t* global, uint32_t last) {
  uint32_t old;
  asm volatile("atom.acq_rel.gpu.global.inc.u32 %0, [%1], %2;" : "=r"(old) : "l"(global), "r"(last) : "memory");
  return old;
}

}  // namespace tersor::cuda::ptx

#endif

// Several blocks share the depth of one output tile when there are too few tiles to fill the GPU. Each part leaves its
// accumulators in the workspace, the block that arrives last adds those of the others and goes on to the epilogue. No
// float is added atomically: integers do not mind the order, and floats are added in the order of the parts.
#pragma once
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/tile_config.cuh"

namespace tersor::cuda {
namespace {

struct Split {
  int parts;
  uint32_t* counters;  // [tiles], 0 before and after every call
  int4* partial;       // [tile][part][words / 4][threads]
};

constexpr int64_t kCounterBytes = kMaxSplitTiles * 4;

inline int64_t SplitBytes(int64_t tiles, int parts, int64_t tile_words) {
  return parts <= 1 ? 0 : kCounterBytes + tiles * parts * tile_words * 4;
}

inline Split SplitOf(int parts, void* workspace) {
  unsigned char* bytes = static_cast<unsigned char*>(workspace);
  return {parts, reinterpret_cast<uint32_t*>(bytes),
          parts <= 1 ? nullptr : reinterpret_cast<int4*>(bytes + kCounterBytes)};
}

// Blocks for every multiprocessor, kBlocksPerProcessor of them, but at least `least` of the steps for each.
inline int ChooseParts(int64_t tiles, int64_t steps, int64_t least) {
  if (tiles > kMaxSplitTiles) return 1;
  int64_t parts = int64_t{ptx::MultiprocessorCount()} * kBlocksPerProcessor / tiles;
  parts = parts < steps / least ? parts : steps / least;
  parts = parts < kMaxParts ? parts : kMaxParts;
  return parts < 1 ? 1 : static_cast<int>(parts);
}

__device__ __forceinline__ int32_t Add(int32_t a, int32_t b) { return a + b; }
__device__ __forceinline__ float Add(float a, float b) { return __fadd_rn(a, b); }

// The first kThreads threads of the block bring kWords int32 or float each, all of them call. False: another block will
// finish the tile. True: acc is the sum over all parts. `shared` holds 4 bytes that no one needs.
template <int kWords, int kThreads, typename T>
__device__ __forceinline__ bool JoinParts(const Split& split, int tile, int part, T (&acc)[kWords],
                                          unsigned char* shared) {
  static_assert(kWords % 4 == 0 && sizeof(T) == 4, "moved 16 bytes at a time");
  const int64_t slot = int64_t{kWords / 4} * kThreads;
  const bool brings = threadIdx.x < kThreads;
  int4* first = split.partial + int64_t{tile} * split.parts * slot + threadIdx.x;
  if (brings) {
#pragma unroll
    for (int i = 0; i < kWords / 4; ++i) {
      int4 four;
      memcpy(&four, acc + i * 4, sizeof four);
      first[part * slot + i * kThreads] = four;
    }
  }
  __syncthreads();
  uint32_t* last = reinterpret_cast<uint32_t*>(shared);
  const uint32_t parts = static_cast<uint32_t>(split.parts);
  if (threadIdx.x == 0) *last = ptx::IncrementWrap(split.counters + tile, parts - 1) == parts - 1 ? 1 : 0;
  __syncthreads();
  const bool finish = *last != 0;
  __syncthreads();  // before `shared` is used again
  if (!finish) return false;
  if (!brings) return true;
#pragma unroll
  for (int i = 0; i < kWords; ++i) acc[i] = T(0);
  for (int other = 0; other < split.parts; ++other)
#pragma unroll
    for (int i = 0; i < kWords / 4; ++i) {
      const int4 four = first[other * slot + i * kThreads];
      T values[4];
      memcpy(values, &four, sizeof four);
#pragma unroll
      for (int j = 0; j < 4; ++j) acc[i * 4 + j] = Add(acc[i * 4 + j], values[j]);
    }
  return true;
}

}  // namespace
}  // namespace tersor::cuda

// Kernels with one mistake each; tests/cuda/CMakeLists.txt says how each has to be reported. The argument names one.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "emulation.h"

namespace {

constexpr unsigned kAll = 0xffffffffu;
alignas(16) int out[256];
int* Shared() { return reinterpret_cast<int*>(emulate::DynamicShared()); }

void DivergentShuffle() {
  const int lane = static_cast<int>(threadIdx.x);
  if (lane < 16) {
    out[lane] = __shfl_sync(kAll, lane, 0);
  } else {
    __syncwarp();
  }
}
void PartialWarp() {
  if (threadIdx.x < 31) out[threadIdx.x] = __shfl_sync(kAll, static_cast<int>(threadIdx.x), 0);
}
void BarrierInOneWarp() {
  if (threadIdx.x < 32) __syncthreads();
  if (threadIdx.x == 40) __syncwarp();
}
void CopyNeverAwaited() {
  emulate::CopyAsync16(Shared(), out, 16);
  emulate::CopyAsyncCommit();
}
void MisalignedCopy() { emulate::CopyAsync16(Shared() + 1, out, 16); }
void MisalignedRow() {
  uint32_t r[4];
  emulate::LoadMatrix4(r, Shared() + threadIdx.x, false);
}
void UnorderedMetadata() {
  int32_t c[4] = {};
  const uint32_t a[4] = {}, b[4] = {};
  emulate::MmaSparseS8U8(c, a, b, 0x44444441);
}
void PastSharedMemory() { Shared()[threadIdx.x + 1] = 1; }
void MisalignedVector() { out[0] = reinterpret_cast<int4*>(out + 1)->x; }
void CopyPastTheEnd() {
  emulate::CopyAsync16(Shared(), reinterpret_cast<char*>(out) + sizeof out - 0, 16);
  emulate::CopyAsyncCommit();
  emulate::CopyAsyncWait(0);
}
// One lane reads what its neighbour wrote.
void NoSyncWarp() {
  Shared()[threadIdx.x] = static_cast<int>(threadIdx.x);
  out[threadIdx.x] = Shared()[threadIdx.x ^ 1];
}
void WithSyncWarp() {
  Shared()[threadIdx.x] = static_cast<int>(threadIdx.x);
  __syncwarp();
  out[threadIdx.x] = Shared()[threadIdx.x ^ 1];
}
void NoBarrier() {
  Shared()[threadIdx.x] = static_cast<int>(threadIdx.x);
  __syncwarp();
  out[threadIdx.x] = Shared()[threadIdx.x ^ 32];
}
void BlocksShareAWord() { out[0] = static_cast<int>(blockIdx.x); }
void BlocksAdd() { atomicAdd(out, 1); }

struct Case {
  const char* name;
  void (*kernel)();
  unsigned blocks, threads;
  size_t shared_bytes;
};
const Case kCases[] = {
    {"divergent_shuffle", DivergentShuffle, 1, 32, 0},
    {"partial_warp", PartialWarp, 1, 32, 0},
    {"barrier_in_one_warp", BarrierInOneWarp, 1, 64, 0},
    {"copy_never_awaited", CopyNeverAwaited, 1, 1, 64},
    {"misaligned_copy", MisalignedCopy, 1, 1, 64},
    {"misaligned_row", MisalignedRow, 1, 32, 256},
    {"unordered_metadata", UnorderedMetadata, 1, 32, 0},
    {"past_shared_memory", PastSharedMemory, 1, 32, 128},
    {"misaligned_vector", MisalignedVector, 1, 1, 0},
    {"copy_past_the_end", CopyPastTheEnd, 1, 1, 64},
    {"no_syncwarp", NoSyncWarp, 1, 32, 128},
    {"with_syncwarp", WithSyncWarp, 1, 32, 128},
    {"no_barrier", NoBarrier, 1, 64, 256},
    {"blocks_share_a_word", BlocksShareAWord, 2, 1, 0},
    {"blocks_add", BlocksAdd, 2, 1, 0},
};

}  // namespace

int main(int argc, char** argv) {
  for (const Case& c : kCases) {
    if (argc < 2 || std::strcmp(argv[1], c.name) != 0) continue;
    emulate::Launch(c.kernel, dim3(c.blocks), dim3(c.threads), c.shared_bytes, nullptr);
    std::printf("nothing was reported\n");
    return 0;
  }
  std::printf("no such case\n");
  return 2;
}

// The emulation itself: every collective against a plain definition, conversions against tests/cpp/half_ref.h.
#include <cmath>
#include <vector>

#include "check.h"
#include "data.h"
#include "emulation.h"
#include "half_ref.h"

namespace tersor::testing {
namespace {

constexpr uint32_t kAll = 0xffffffffu;

uint32_t loaded[32][4];
void LoadMatrixKernel(int swizzled, int transpose) {
  uint16_t* shared = reinterpret_cast<uint16_t*>(emulate::DynamicShared());
  const int lane = static_cast<int>(threadIdx.x);
  for (int i = 0; i < 64; ++i) {  // 32 rows of 128 bytes; value 64 row + column
    const int chunk = i / 8 ^ (swizzled ? lane & 7 : 0);
    shared[lane * 64 + chunk * 8 + i % 8] = static_cast<uint16_t>(lane * 64 + i);
  }
  __syncwarp();
  emulate::LoadMatrix4(loaded[lane], shared + lane * 64 + (3 ^ (swizzled ? lane & 7 : 0)) * 8, transpose != 0);
}

TEST(LoadMatrix) {
  for (const int swizzled : {0, 1})
    for (const int transpose : {0, 1}) {
      emulate::counters = {};
      emulate::Launch(LoadMatrixKernel, dim3(1), dim3(32), 32 * 128, nullptr, swizzled, transpose);
      CHECK(emulate::counters.ldmatrix == 4);
      CHECK(emulate::counters.ldmatrix_wavefronts == (swizzled ? 4u : 32u));
      for (int lane = 0; lane < 32; ++lane)
        for (int i = 0; i < 4; ++i)
          for (int h = 0; h < 2; ++h) {
            const int row = transpose ? lane % 4 * 2 + h : lane / 4, column = transpose ? lane / 4 : lane % 4 * 2 + h;
            CHECK((loaded[lane][i] >> 16 * h & 0xffff) == static_cast<uint32_t>((8 * i + row) * 64 + 24 + column));
          }
    }
}

uint32_t shuffled[32][6];
void ShuffleKernel() {
  const int lane = static_cast<int>(threadIdx.x), value = 100 + lane;
  shuffled[lane][0] = static_cast<uint32_t>(__shfl_sync(kAll, value, 5));
  shuffled[lane][1] = static_cast<uint32_t>(__shfl_xor_sync(kAll, value, 12));
  shuffled[lane][2] = static_cast<uint32_t>(__shfl_up_sync(kAll, value, 3, 8));
  shuffled[lane][3] = static_cast<uint32_t>(__shfl_down_sync(kAll, value, 7));
  shuffled[lane][4] = __ballot_sync(kAll, lane % 3 == 0);
  shuffled[lane][5] = static_cast<uint32_t>(__shfl_sync(kAll, value, lane + 1, 4));
}

TEST(ShufflesAndVotes) {
  emulate::Launch(ShuffleKernel, dim3(1), dim3(32), 0, nullptr);
  for (uint32_t lane = 0; lane < 32; ++lane) {
    CHECK(shuffled[lane][0] == 105);
    CHECK(shuffled[lane][1] == 100 + (lane ^ 12));
    CHECK(shuffled[lane][2] == 100 + (lane % 8 < 3 ? lane : lane - 3));
    CHECK(shuffled[lane][3] == 100 + (lane + 7 < 32 ? lane + 7 : lane));
    CHECK(shuffled[lane][4] == 0x49249249u);
    CHECK(shuffled[lane][5] == 100 + lane / 4 * 4 + (lane + 1) % 4);
  }
}

void BankKernel(int stride) { emulate::SharedAccess(emulate::DynamicShared() + threadIdx.x * unsigned(stride), 4); }
void WideBankKernel() { emulate::SharedAccess(emulate::DynamicShared() + threadIdx.x * 16, 16); }

TEST(BankConflicts) {
  const int strides[] = {0, 4, 8, 64, 128, 132};
  const uint64_t cycles[] = {1, 1, 2, 16, 32, 1};
  for (size_t i = 0; i < 6; ++i) {
    emulate::counters = {};
    emulate::Launch(BankKernel, dim3(1), dim3(32), 8192, nullptr, strides[i]);
    CHECK_OR(emulate::counters.shared_wavefronts == cycles[i], "stride %d", strides[i]);
  }
  emulate::counters = {};
  emulate::Launch(WideBankKernel, dim3(1), dim3(32), 8192, nullptr);
  CHECK(emulate::counters.shared == 1 && emulate::counters.shared_wavefronts == 4);
}

alignas(16) uint8_t source[64];
uint8_t before[32], after_one[32], after_all[32];
void CopyKernel() {
  uint8_t* shared = emulate::DynamicShared();
  std::memset(shared, 1, 32);
  emulate::CopyAsync16(shared, source, 16);
  emulate::CopyAsyncCommit();
  emulate::CopyAsync16(shared + 16, source + 16, 5);
  emulate::CopyAsyncCommit();
  std::memcpy(before, shared, 32);
  emulate::CopyAsyncWait(1);
  std::memcpy(after_one, shared, 32);
  emulate::CopyAsyncWait(0);
  std::memcpy(after_all, shared, 32);
}

TEST(AsyncCopiesLandAtTheirWait) {
  for (int i = 0; i < 64; ++i) source[i] = static_cast<uint8_t>(i + 1);
  emulate::counters = {};
  emulate::Launch(CopyKernel, dim3(1), dim3(1), 32, nullptr);
  for (int i = 0; i < 32; ++i) {
    CHECK(before[i] == 0xa5);
    CHECK(after_one[i] == (i < 16 ? i + 1 : 0xa5));
    CHECK(after_all[i] == (i < 21 ? i + 1 : 0));
  }
  CHECK(emulate::counters.async_copies == 2 && emulate::counters.async_bytes == 21);
}

std::vector<int> order(120);
int started, total, total_seen[2];
void OrderKernel() {
  order[static_cast<size_t>(atomicAdd(&started, 1))] = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
}
void SumKernel() {
  int* shared = reinterpret_cast<int*>(emulate::DynamicShared());
  shared[threadIdx.x] = static_cast<int>(threadIdx.x);
  __syncthreads();
  atomicAdd(&total, shared[blockDim.x - 1 - threadIdx.x]);
  if (threadIdx.x == 0 && blockIdx.x % 2 == 0) return;  // leaves early
  __syncthreads();
  if (threadIdx.x == 1) total_seen[blockIdx.x] = atomicAdd(&total, 0);
}

TEST(SchedulesAndBarriers) {
  started = 0;
  emulate::Launch(OrderKernel, dim3(3), dim3(40), 0, nullptr);
  for (int i = 0; i < 120; ++i) CHECK(order[static_cast<size_t>(i)] == i);
  for (uint32_t seed = 0; seed < 4; ++seed) {
    emulate::SetSchedule(seed);
    std::vector<int> first;
    for (int round = 0; round < 2; ++round) {
      first = order;
      started = 0;
      emulate::Launch(OrderKernel, dim3(3), dim3(40), 0, nullptr);
    }
    CHECK_OR(first == order, "seed %u gives two orders", seed);
    CHECK((order[0] == 0 && order[1] == 1 && order[2] == 2) == (seed == 0));
    total = 0;
    emulate::counters = {};
    emulate::Launch(SumKernel, dim3(2), dim3(64), 64 * sizeof(int), nullptr);
    CHECK(total == 2 * 63 * 32 && total_seen[0] >= 63 * 32 && total_seen[1] >= 63 * 32);
    CHECK(emulate::counters.blocks == 2 && emulate::counters.barriers == 4);
  }
  emulate::SetSchedule(0);
}

TEST(HalfConversions) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const uint16_t half = static_cast<uint16_t>(bits);
    CHECK(SameFloat(__half2float({half}), HalfToFloat(DType::kF16, half)));
    CHECK(SameFloat(__bfloat162float({half}), HalfToFloat(DType::kBf16, half)));
  }
  Random random(5);
  for (int i = 0; i < 100000; ++i) {
    // Every exponent, and values half way between two halves.
    uint32_t bits = static_cast<uint32_t>(random.Bits());
    if (i % 2 == 0) bits = (bits & 0xffff0000u) | (i % 4 == 0 ? 0x8000u : 0x1000u);
    const float x = FloatOf(bits);
    if (x != x) continue;
    CHECK_OR(__float2half_rn(x).bits == FloatToHalf(DType::kF16, x), "%a", static_cast<double>(x));
    CHECK_OR(__float2bfloat16_rn(x).bits == FloatToHalf(DType::kBf16, x), "%a", static_cast<double>(x));
  }
  CHECK(__float2half_rn(std::nanf("")).bits == 0x7fff && __float2bfloat16_rn(std::nanf("")).bits == 0x7fff);
}

TEST(BytePermute) {
  CHECK(__byte_perm(0x33221100u, 0x77665544u, 0x7250) == 0x77225500u);
  CHECK(__byte_perm(0x00008000u, 0, 0x9999) == 0xffffffffu);
}

}  // namespace
}  // namespace tersor::testing

// Runs every wrapper of kernels/cuda/ptx.cuh on pseudo-random registers and prints one line per wrapper: its name and
// a hash of all results. Built once by nvcc and once on the emulation: both must print the same lines.
#include <cstdio>
#include <cstring>
#include <vector>

#include "kernels/cuda/ptx.cuh"

namespace tersor::cuda {
namespace {

constexpr int kCases = 64, kLanes = 32;

struct Lane {
  uint32_t a[4], b[4], c[4], metadata;
};

struct Result {
  uint32_t r[4];
};

// --- Memory on either side.
#ifdef TERSOR_EMULATE
template <typename T>
T* ToDevice(const std::vector<T>& values) {
  T* copy = static_cast<T*>(std::aligned_alloc(128, (values.size() * sizeof(T) + 127) / 128 * 128));
  std::memcpy(copy, values.data(), values.size() * sizeof(T));
  return copy;
}
template <typename T>
void FromDevice(std::vector<T>& values, T* device) {
  std::memcpy(values.data(), device, values.size() * sizeof(T));
  std::free(device);
}
#else
void Require(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "CUDA: %s\n", cudaGetErrorString(error));
  std::exit(1);
}
template <typename T>
T* ToDevice(const std::vector<T>& values) {
  T* copy = nullptr;
  Require(cudaMalloc(&copy, values.size() * sizeof(T)));
  Require(cudaMemcpy(copy, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
  return copy;
}
template <typename T>
void FromDevice(std::vector<T>& values, T* device) {
  Require(cudaMemcpy(values.data(), device, values.size() * sizeof(T), cudaMemcpyDeviceToHost));
  Require(cudaFree(device));
}
#endif

// --- One kernel per wrapper; block i takes case i.

struct Words {
  int32_t s[4];
  float f[4];
};

__device__ __forceinline__ Words Accumulators(const Lane& lane) {
  Words words;
  for (int i = 0; i < 4; ++i) {
    words.s[i] = static_cast<int32_t>(lane.c[i]);
    words.f[i] = static_cast<float>(static_cast<int32_t>(lane.c[i]) % 1024);
  }
  return words;
}
__device__ __forceinline__ Result Bits(const int32_t (&c)[4]) {
  return {{static_cast<uint32_t>(c[0]), static_cast<uint32_t>(c[1]), static_cast<uint32_t>(c[2]),
           static_cast<uint32_t>(c[3])}};
}
__device__ __forceinline__ Result Bits(const float (&c)[4]) {
  return {{__float_as_uint(c[0]), __float_as_uint(c[1]), __float_as_uint(c[2]), __float_as_uint(c[3])}};
}

#define DENSE(name, wrapper, member)                                                      \
  __global__ void name(const Lane* lanes, Result* out) {                                  \
    const int at = static_cast<int>(blockIdx.x) * kLanes + static_cast<int>(threadIdx.x); \
    const Lane lane = lanes[at];                                                          \
    Words words = Accumulators(lane);                                                     \
    const uint32_t b[2] = {lane.b[0], lane.b[1]};                                         \
    ptx::wrapper(words.member, lane.a, b);                                                \
    out[at] = Bits(words.member);                                                         \
  }
#define SPARSE(name, wrapper, member)                                                     \
  __global__ void name(const Lane* lanes, Result* out) {                                  \
    const int at = static_cast<int>(blockIdx.x) * kLanes + static_cast<int>(threadIdx.x); \
    const Lane lane = lanes[at];                                                          \
    Words words = Accumulators(lane);                                                     \
    ptx::wrapper(words.member, lane.a, lane.b, lane.metadata);                            \
    out[at] = Bits(words.member);                                                         \
  }
DENSE(MmaU8S8, MmaU8S8, s)
DENSE(MmaS8U8, MmaS8U8, s)
DENSE(MmaF16, MmaF16, f)
DENSE(MmaBf16, MmaBf16, f)
SPARSE(MmaSparseS8U8, MmaSparseS8U8, s)
SPARSE(MmaSparseU8S8, MmaSparseU8S8, s)
SPARSE(MmaSparseF16Low, MmaSparseF16<0>, f)
SPARSE(MmaSparseF16High, MmaSparseF16<1>, f)
#undef DENSE
#undef SPARSE

__global__ void SubtractF16x2(const Lane* lanes, Result* out) {
  const int at = static_cast<int>(blockIdx.x) * kLanes + static_cast<int>(threadIdx.x);
  for (int i = 0; i < 4; ++i) out[at].r[i] = ptx::SubtractF16x2(lanes[at].a[i], lanes[at].b[i]);
}

__global__ void AddBf16x2(const Lane* lanes, Result* out) {
  const int at = static_cast<int>(blockIdx.x) * kLanes + static_cast<int>(threadIdx.x);
  for (int i = 0; i < 4; ++i) out[at].r[i] = ptx::AddBf16x2(lanes[at].a[i], lanes[at].b[i]);
}

// 512 bytes through shared memory; the rows are taken in another order than they lie.
template <bool kTransposed>
__global__ void LoadMatrices(const Lane* lanes, Result* out) {
  TERSOR_DYNAMIC_SHARED(shared);
  const int lane = static_cast<int>(threadIdx.x), at = static_cast<int>(blockIdx.x) * kLanes + lane;
  for (int i = 0; i < 4; ++i) reinterpret_cast<uint32_t*>(shared)[lane * 4 + i] = lanes[at].a[i];
  __syncwarp();
  const unsigned char* row = shared + (lane * 5 % kLanes) * 16;
  uint32_t r[4];
  if (kTransposed)
    ptx::LoadMatrix4Transposed(r, row);
  else
    ptx::LoadMatrix4(r, row);
  out[at] = {{r[0], r[1], r[2], r[3]}};
}

// Two groups; 0 to 16 bytes of each lane's source arrive, the rest is zero.
__global__ void CopyAsync(const Lane* lanes, Result* out) {
  TERSOR_DYNAMIC_SHARED(shared);
  const int lane = static_cast<int>(threadIdx.x), at = static_cast<int>(blockIdx.x) * kLanes + lane;
  const Result* source = out + at;
  const int bytes = (lane + static_cast<int>(blockIdx.x)) % 17;
  ptx::CopyAsync16(shared + lane * 16, source, bytes);
  ptx::CopyAsyncCommit();
  ptx::CopyAsync16(shared + (kLanes + lane) * 16, source, 16);
  ptx::CopyAsyncCommit();
  ptx::CopyAsyncWait<1>();
  __syncwarp();
  const Result first = *reinterpret_cast<const Result*>(shared + (lane ^ 3) * 16);
  ptx::CopyAsyncWait<0>();
  __syncwarp();
  const Result second = *reinterpret_cast<const Result*>(shared + (kLanes + (lane ^ 5)) * 16);
  __syncwarp();
  Result sum;
  for (int i = 0; i < 4; ++i) sum.r[i] = first.r[i] + 3 * second.r[i] + lanes[at].c[i];
  out[at] = sum;
}

__global__ void LoadStream(const Lane* lanes, Result* out) {
  const int at = static_cast<int>(blockIdx.x) * kLanes + static_cast<int>(threadIdx.x);
  const uint4* words = reinterpret_cast<const uint4*>(lanes);  // a Lane is 52 bytes: any 16 of them will do
  const uint4 v = ptx::LoadStream16(words + at);
  out[at] = {{v.x, v.y, v.z, v.w}};
}

// Every thread takes a turn; the values that they got, added up, and the counter do not depend on the order.
__global__ void Increment(const Lane*, Result* out) {
  const uint32_t last = 6, got = ptx::IncrementWrap(&out[0].r[0], last);
  atomicAdd(reinterpret_cast<int*>(&out[1].r[0]), static_cast<int>(got * got + 1));
}

// --- Inputs.

class Generator {
 public:
  uint32_t Next() {
    state_ = state_ * 6364136223846793005ull + 1442695040888963407ull;
    return static_cast<uint32_t>(state_ >> 32);
  }

 private:
  uint64_t state_ = 20240611;
};

// For each group of 4 columns two places, the lower first: what ordered metadata may hold.
uint32_t Metadata(Generator& random) {
  constexpr uint32_t kPairs[] = {0x4, 0x8, 0xc, 0x9, 0xd, 0xe};
  uint32_t metadata = 0;
  for (int i = 0; i < 8; ++i) metadata |= kPairs[random.Next() % 6] << (4 * i);
  return metadata;
}

// Two small integers as halves, so that sums are exact in any order.
uint32_t Halves(Generator& random, bool bfloat16) {
  uint32_t bits = 0;
  for (int i = 0; i < 2; ++i) {
    const float value = static_cast<float>(static_cast<int32_t>(random.Next() % 65) - 32);
    uint32_t word;
    std::memcpy(&word, &value, sizeof word);
    const uint32_t exponent = word >> 23 & 0xff, sign = word >> 16 & 0x8000;
    const uint32_t half = value == 0.0f ? 0 : sign | (exponent - 112) << 10 | (word >> 13 & 0x3ff);
    bits |= (bfloat16 ? word >> 16 : half) << (16 * i);
  }
  return bits;
}

enum class Operands { kBytes, kHalves, kBfloat16 };

std::vector<Lane> Lanes(Operands operands) {
  Generator random;
  std::vector<Lane> lanes(kCases * kLanes);
  for (Lane& lane : lanes) {
    for (int i = 0; i < 4; ++i) {
      lane.a[i] = operands == Operands::kBytes ? random.Next() : Halves(random, operands == Operands::kBfloat16);
      lane.b[i] = operands == Operands::kBytes ? random.Next() : Halves(random, operands == Operands::kBfloat16);
      lane.c[i] = random.Next() >> 8;
    }
    lane.metadata = Metadata(random);
  }
  return lanes;
}

bool Probe(const char* name, void (*kernel)(const Lane*, Result*), Operands operands) {
  const std::vector<Lane> lanes = Lanes(operands);
  std::vector<Result> results(lanes.size());
  Generator random;
  for (Result& result : results)
    for (uint32_t& word : result.r) word = random.Next();
  results[0].r[0] = 0;  // the counter of Increment
  Lane* in = ToDevice(lanes);
  Result* out = ToDevice(results);
  const int error = TERSOR_LAUNCH(kernel, dim3(kCases), dim3(kLanes), 1024, nullptr, in, out);
  std::vector<Lane> unused(lanes.size());
  FromDevice(results, out);
  FromDevice(unused, in);
  uint64_t hash = 14695981039346656037ull;
  for (const Result& result : results)
    for (const uint32_t word : result.r)
      for (int i = 0; i < 4; ++i) hash = (hash ^ (word >> (8 * i) & 0xff)) * 1099511628211ull;
  std::printf("%s %016llx\n", name, static_cast<unsigned long long>(hash));
  return error == 0;
}

int Run() {
  const bool ok =
      Probe("MmaU8S8", MmaU8S8, Operands::kBytes) & Probe("MmaS8U8", MmaS8U8, Operands::kBytes) &
      Probe("MmaF16", MmaF16, Operands::kHalves) & Probe("MmaBf16", MmaBf16, Operands::kBfloat16) &
      Probe("MmaSparseS8U8", MmaSparseS8U8, Operands::kBytes) &
      Probe("MmaSparseU8S8", MmaSparseU8S8, Operands::kBytes) &
      Probe("MmaSparseF16<0>", MmaSparseF16Low, Operands::kHalves) &
      Probe("MmaSparseF16<1>", MmaSparseF16High, Operands::kHalves) &
      Probe("SubtractF16x2", SubtractF16x2, Operands::kHalves) & Probe("AddBf16x2", AddBf16x2, Operands::kBfloat16) &
      Probe("LoadMatrix4", LoadMatrices<false>, Operands::kBytes) &
      Probe("LoadMatrix4Transposed", LoadMatrices<true>, Operands::kBytes) &
      Probe("CopyAsync16", CopyAsync, Operands::kBytes) & Probe("LoadStream16", LoadStream, Operands::kBytes) &
      Probe("IncrementWrap", Increment, Operands::kBytes);
  return ok ? 0 : 1;
}

}  // namespace
}  // namespace tersor::cuda

int main() { return tersor::cuda::Run(); }

// Unstructured sparse int8: a bit per weight and the non-zeros. One step is 16 weight rows by 64 of k. A lane has 32 of
// the 1024 weights, eight words of the operands of two dense matrix instructions; its 32 bits say which of them are in
// the stream of non-zeros, where its own follow those of the lanes before it. The stream of a step passes through
// shared memory, a warp by itself; each lane then expands its words with byte permutations. Exact: the zeros are put
// back.
#include "kernels/cuda/fragment_gemm.cuh"

namespace tersor::cuda {
namespace {

constexpr uint32_t kAllLanes = 0xffffffffu;

// For four weights of which `bits` are in the stream: the byte permutation that spreads the next bytes of the stream
// over them, 4 being a byte of zeros.
__device__ __forceinline__ uint32_t SpreadSelector(uint32_t bits) {
  uint32_t selector = 0, next = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint32_t bit = bits >> i & 1;
    selector |= (bit != 0 ? next : 4u) << (4 * i);
    next += bit;
  }
  return selector;
}

class BitmapWeight {
 public:
  using Args = BitmapS8Args;
  using Sum = int32_t;
  struct Fragment {
    uint32_t bits;
    uint4 stream[2];  // chunks `lane` and `lane + 32`
  };
  struct Operand {
    uint32_t a[2][4];
  };
  using Activations = Bytes64;
  using Token = const uint8_t*;
  static constexpr int kAhead = 2;
  static constexpr int kWarpShared = 1024 + 16;  // a step without zeros, and what is read ahead

  __device__ __forceinline__ BitmapWeight(const Args& args, int lane, unsigned char* warp_shared)
      : lane_(lane),
        steps_(static_cast<int>((args.k + 63) / 64)),
        selector_(SpreadSelector(static_cast<uint32_t>(lane) & 15u)),
        bitmap_(args.bitmap),
        offsets_(args.offsets),
        values_(reinterpret_cast<const uint4*>(args.values)),
        a_(args.a),
        lda_(args.lda),
        shared_(reinterpret_cast<uint32_t*>(warp_shared)) {}

  __device__ __forceinline__ int Steps(int64_t) const { return steps_; }
  __device__ __forceinline__ Fragment Load(int64_t tile, int step) const {
    const int64_t at = tile * steps_ + step;
    Fragment f = {bitmap_[at * kWarp + lane_], {}};
    const int first = offsets_[at] + lane_, end = offsets_[at + 1];
    if (first < end) f.stream[0] = ptx::LoadStream16(values_ + first);
    if (first + kWarp < end) f.stream[1] = ptx::LoadStream16(values_ + first + kWarp);
    return f;
  }

  __device__ __forceinline__ Operand Expand(const Fragment& f) const {
    uint4* chunks = reinterpret_cast<uint4*>(shared_);
    __syncwarp();  // all lanes are done with the step before
    chunks[lane_] = f.stream[0];
    chunks[lane_ + kWarp] = f.stream[1];
    __syncwarp();
    uint32_t offset = BytesBefore(f.bits);
    const uint32_t* next = shared_ + offset / 4;
    uint32_t low = *next, high = *++next;
    offset %= 4;
    Operand w;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const uint32_t bits = f.bits >> (4 * i) & 15u;
      const uint32_t window = __byte_perm(low, high, 0x3210u + 0x1111u * offset);
      w.a[i / 4][i % 4] = __byte_perm(window, 0u, __shfl_sync(kAllLanes, selector_, static_cast<int>(bits)));
      offset += static_cast<uint32_t>(__popc(bits));
      if (offset >= 4) {
        offset -= 4;
        low = high;
        high = *++next;
      }
    }
    return w;
  }

  __device__ __forceinline__ Token TokenAt(int64_t token) const { return a_ + token * lda_ + lane_ % 4 * 16; }
  __device__ __forceinline__ static Bytes64 LoadActivations(Token token, const Fragment&, int step) {
    return LoadBytes64(token + int64_t{step} * 64);
  }
  __device__ __forceinline__ static void Multiply(int32_t (&acc)[4], const Operand& w, const Bytes64& x) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint32_t b[2] = {x.b[2 * i], x.b[2 * i + 1]};
      ptx::MmaS8U8(acc, w.a[i], b);
    }
  }

 private:
  // The non-zeros of the lanes before this one.
  __device__ __forceinline__ uint32_t BytesBefore(uint32_t bits) const {
    const int mine = __popc(bits);
    int sum = mine;
#pragma unroll
    for (int distance = 1; distance < kWarp; distance *= 2) {
      const int other = __shfl_up_sync(kAllLanes, sum, static_cast<unsigned>(distance));
      if (lane_ >= distance) sum += other;
    }
    return static_cast<uint32_t>(sum - mine);
  }

  int lane_, steps_;
  uint32_t selector_;
  const uint32_t* bitmap_;
  const int32_t* offsets_;
  const uint4* values_;
  const uint8_t* a_;
  int64_t lda_;
  uint32_t* shared_;
};

// Expanding costs as much as several products, so a warp takes as many tokens as its registers hold.
using ManyTokens = FragmentTile<1, 8, 2, 1, 4>;

}  // namespace

int BitmapS8(const BitmapS8Args& args, void* stream) {
  if (args.m <= FewTokens::kBlockTokens) return LaunchFragmentGemm<BitmapWeight, FewTokens>(args, stream);
  if (args.m <= SomeTokens::kBlockTokens) return LaunchFragmentGemm<BitmapWeight, SomeTokens>(args, stream);
  return LaunchFragmentGemm<BitmapWeight, ManyTokens>(args, stream);
}

}  // namespace tersor::cuda

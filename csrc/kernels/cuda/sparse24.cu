// 2:4 sparse weights on the sparse matrix instruction. One step is 16 weight rows by 64 (int8) or 32 (float16) of k, 32
// kept values a row: 512 bytes of values, 16 for each lane, in the order of its registers, and one word of metadata
// for each lane (docs/kernels.md, "CUDA layouts"). Int8 is exact; float16 sums in float32 in the order of the hardware.
#include "kernels/cuda/fragment_gemm.cuh"

namespace tersor::cuda {
namespace {

struct Sparse24Fragment {
  uint4 values;
  uint32_t metadata;
};

// What both types have in common. kStream: read once, past the first cache.
template <bool kStream>
class Sparse24Weight {
 public:
  using Args = Sparse24Args;
  using Fragment = Sparse24Fragment;
  using Operand = Sparse24Fragment;
  static constexpr int kWarpShared = 0;

  __device__ __forceinline__ Sparse24Weight(const Args& args, int lane, int depth, int words)
      : lane_(lane),
        steps_(static_cast<int>((args.k + depth - 1) / depth)),
        words_((steps_ + words - 1) / words),
        values_(static_cast<const uint4*>(args.values)),
        metadata_(static_cast<const uint32_t*>(args.metadata)) {}
  __device__ __forceinline__ int Steps(int64_t) const { return steps_; }
  __device__ __forceinline__ static const Operand& Expand(const Fragment& f) { return f; }

 protected:
  __device__ __forceinline__ uint4 Values(int64_t tile, int step) const {
    const uint4* at = values_ + (tile * steps_ + step) * kWarp + lane_;
    return kStream ? ptx::LoadStream16(at) : *at;
  }
  __device__ __forceinline__ uint32_t Metadata(int64_t tile, int word) const {
    return metadata_[(tile * words_ + word) * kWarp + lane_];
  }
  int lane_, steps_, words_;

 private:
  const uint4* values_;
  const uint32_t* metadata_;
};

template <bool kStream>
class Sparse24WeightS8 : public Sparse24Weight<kStream> {
 public:
  using Sum = int32_t;
  using Activations = Bytes64;
  using Token = const uint8_t*;
  static constexpr int kAhead = kStream ? 3 : 1;

  __device__ __forceinline__ Sparse24WeightS8(const Sparse24Args& args, int lane, unsigned char*)
      : Sparse24Weight<kStream>(args, lane, 64, 1), a_(static_cast<const uint8_t*>(args.a)), lda_(args.lda) {}
  __device__ __forceinline__ Sparse24Fragment Load(int64_t tile, int step) const {
    return {this->Values(tile, step), this->Metadata(tile, step)};
  }
  __device__ __forceinline__ Token TokenAt(int64_t token) const { return a_ + token * lda_ + this->lane_ % 4 * 16; }
  __device__ __forceinline__ static Bytes64 LoadActivations(Token token, const Sparse24Fragment&, int step) {
    return LoadBytes64(token + int64_t{step} * 64);
  }
  __device__ __forceinline__ static void Multiply(int32_t (&acc)[4], const Sparse24Fragment& w, const Bytes64& x) {
    const uint32_t a[4] = {w.values.x, w.values.y, w.values.z, w.values.w};
    ptx::MmaSparseS8U8(acc, a, x.b, w.metadata);
  }

 private:
  const uint8_t* a_;
  int64_t lda_;
};

// A word of metadata serves two steps: the second one takes it from the other pair of lanes.
template <bool kStream>
class Sparse24WeightF16 : public Sparse24Weight<kStream> {
 public:
  using Sum = float;
  struct Fragment {
    uint4 values;
    uint32_t metadata;
    bool odd;
  };
  using Operand = Fragment;
  using Activations = Bytes64;
  using Token = const uint16_t*;
  static constexpr int kAhead = kStream ? 3 : 1;

  __device__ __forceinline__ Sparse24WeightF16(const Sparse24Args& args, int lane, unsigned char*)
      : Sparse24Weight<kStream>(args, lane, 32, 2), a_(static_cast<const uint16_t*>(args.a)), lda_(args.lda) {}
  __device__ __forceinline__ Fragment Load(int64_t tile, int step) const {
    return {this->Values(tile, step), this->Metadata(tile, step / 2), step % 2 != 0};
  }
  __device__ __forceinline__ static const Operand& Expand(const Fragment& f) { return f; }
  __device__ __forceinline__ Token TokenAt(int64_t token) const { return a_ + token * lda_ + this->lane_ % 4 * 2; }
  // A group of four columns belongs to two lanes, so the order of k cannot be changed below it: four loads.
  __device__ __forceinline__ static Bytes64 LoadActivations(Token token, const Fragment&, int step) {
    Bytes64 x;
#pragma unroll
    for (int i = 0; i < 4; ++i) x.b[i] = *reinterpret_cast<const uint32_t*>(token + int64_t{step} * 32 + 8 * i);
    return x;
  }
  __device__ __forceinline__ static void Multiply(float (&acc)[4], const Fragment& w, const Bytes64& x) {
    const uint32_t a[4] = {w.values.x, w.values.y, w.values.z, w.values.w};
    if (w.odd) {
      ptx::MmaSparseF16<1>(acc, a, x.b, w.metadata);
    } else {
      ptx::MmaSparseF16<0>(acc, a, x.b, w.metadata);
    }
  }

 private:
  const uint16_t* a_;
  int64_t lda_;
};

// Few tokens: the warps of a block share the depth, so that enough weight is in flight. Many: 128 rows by 128 tokens.
using ManyTokens = FragmentTile<4, 4, 1, 4, 2>;

template <template <bool> class Weight>
int Launch(const Sparse24Args& args, void* stream) {
  if (args.m <= FewTokens::kBlockTokens) return LaunchFragmentGemm<Weight<true>, FewTokens>(args, stream);
  if (args.m <= 2 * SomeTokens::kBlockTokens) return LaunchFragmentGemm<Weight<true>, SomeTokens>(args, stream);
  return LaunchFragmentGemm<Weight<false>, ManyTokens>(args, stream);
}

}  // namespace

int Sparse24S8(const Sparse24Args& args, void* stream) { return Launch<Sparse24WeightS8>(args, stream); }
int Sparse24F16(const Sparse24Args& args, void* stream) { return Launch<Sparse24WeightF16>(args, stream); }

}  // namespace tersor::cuda

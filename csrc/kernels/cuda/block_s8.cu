// Block-sparse int8: blocks of 16 weight rows by 32 of k, one dense matrix instruction each, 16 bytes of a lane in the
// order of its registers. The blocks of 16 rows are a list, so the warps of a thread block take every eighth of it.
// Exact.
#include "kernels/cuda/fragment_gemm.cuh"

namespace tersor::cuda {
namespace {

class BlockWeight {
 public:
  using Args = BlockS8Args;
  using Sum = int32_t;
  struct Fragment {
    uint4 values;
    int32_t column;
  };
  using Operand = Fragment;
  struct Activations {
    uint32_t b[2];
  };
  using Token = const uint8_t*;
  static constexpr int kAhead = 3, kWarpShared = 0;

  __device__ __forceinline__ BlockWeight(const Args& args, int lane, unsigned char*)
      : lane_(lane),
        values_(static_cast<const uint4*>(args.values)),
        row_offsets_(args.row_offsets),
        column_indices_(args.column_indices),
        a_(args.a),
        lda_(args.lda) {}

  __device__ __forceinline__ int Steps(int64_t tile) const { return row_offsets_[tile + 1] - row_offsets_[tile]; }
  __device__ __forceinline__ Fragment Load(int64_t tile, int step) const {
    const int64_t block = int64_t{row_offsets_[tile]} + step;
    return {ptx::LoadStream16(values_ + block * kWarp + lane_), column_indices_[block]};
  }
  __device__ __forceinline__ static const Operand& Expand(const Fragment& f) { return f; }
  __device__ __forceinline__ Token TokenAt(int64_t token) const { return a_ + token * lda_ + lane_ % 4 * 8; }
  __device__ __forceinline__ static Activations LoadActivations(Token token, const Fragment& f, int) {
    const uint2 v = *reinterpret_cast<const uint2*>(token + int64_t{f.column} * 32);
    return {{v.x, v.y}};
  }
  __device__ __forceinline__ static void Multiply(int32_t (&acc)[4], const Fragment& w, const Activations& x) {
    const uint32_t a[4] = {w.values.x, w.values.y, w.values.z, w.values.w};
    ptx::MmaS8U8(acc, a, x.b);
  }

 private:
  int lane_;
  const uint4* values_;
  const int32_t *row_offsets_, *column_indices_;
  const uint8_t* a_;
  int64_t lda_;
};

using ManyTokens = FragmentTile<1, 8, 2, 1, 4>;

}  // namespace

int BlockS8(const BlockS8Args& args, void* stream) {
  if (args.m <= FewTokens::kBlockTokens) return LaunchFragmentGemm<BlockWeight, FewTokens>(args, stream);
  if (args.m <= SomeTokens::kBlockTokens) return LaunchFragmentGemm<BlockWeight, SomeTokens>(args, stream);
  return LaunchFragmentGemm<BlockWeight, ManyTokens>(args, stream);
}

}  // namespace tersor::cuda

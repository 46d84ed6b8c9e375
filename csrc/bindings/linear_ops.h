// The ops y = act(x W^T + bias + residual), one for each kind of packed weight, by the names of their torch ops.
#pragma once
#include <cstddef>
#include <type_traits>

#include "tersor/linear_lut4.h"
#include "tersor/linear_s8.h"
#include "tersor/lowrank.h"
#include "tersor/spmm_f32.h"
#include "tersor/spmm_s8.h"

namespace tersor {

// A: the arguments, which are LinearS8Args or have the same members but for x_scale and x_zero_point. kShape: what is
// in a packed weight, with members n and k; throws Error when the bytes are not one.
template <typename A, auto kShape, void (*kRun)(const A&, const Executor&)>
struct LinearOp {
  using Args = A;
  static constexpr bool kQuantises = std::is_same_v<A, LinearS8Args>;  // x, to 8 bits
  static auto Shape(const void* packed, size_t bytes) { return kShape(packed, bytes); }
  static void Run(const Args& args, const Executor& executor) { kRun(args, executor); }
};

struct LinearS8Op : LinearOp<LinearS8Args, ShapeOfPackedS8, LinearS8> {
  static constexpr char kName[] = "linear_s8";
};
struct LinearLut4Op : LinearOp<LinearS8Args, InspectPackedLut4, LinearLut4> {
  static constexpr char kName[] = "linear_lut4";
};
struct SpmmS8Op : LinearOp<LinearS8Args, InspectPackedSpmmS8, SpmmS8> {
  static constexpr char kName[] = "spmm_s8";
};
struct SpmmF32Op : LinearOp<SpmmF32Args, InspectPackedSpmmF32, SpmmF32> {
  static constexpr char kName[] = "spmm_f32";
};
struct LowRankS8Op : LinearOp<LinearS8Args, InspectPackedLowRankS8, LowRankS8> {
  static constexpr char kName[] = "lowrank_s8";
};
struct LowRankF32Op : LinearOp<LowRankF32Args, InspectPackedLowRankF32, LowRankF32> {
  static constexpr char kName[] = "lowrank_f32";
};

}  // namespace tersor

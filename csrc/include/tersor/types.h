// Plain types shared by the public API, the ops and the kernels.
#pragma once
#include <cstdint>

namespace tersor {

enum class DType : int32_t { kF32 = 0, kBf16 = 1, kF16 = 2 };

// Codes are part of the torch op schema and of the file format: append, never renumber.
enum class Activation : int32_t { kNone = 0, kRelu = 1, kGelu = 2, kGeluTanh = 3, kSilu = 4 };
constexpr int32_t kActivationCount = 5;

}  // namespace tersor

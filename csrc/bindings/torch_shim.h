// Hand-written declarations of torch's stable C shim: building needs no torch, and the result loads with any torch
// from 2.10 on.
#pragma once
#include <cstdint>

extern "C" {
struct AtenTensorOpaque;
struct DeviceGuardOpaque;
struct TorchLibraryOpaque;
typedef AtenTensorOpaque* AtenTensorHandle;
typedef DeviceGuardOpaque* DeviceGuardHandle;
typedef TorchLibraryOpaque* TorchLibraryHandle;
typedef int32_t AOTITorchError;  // 0: success
typedef uint64_t StableIValue;   // a handle, an int64, or the bits of a double

#define SHIM(result, name, arguments) __attribute__((visibility("default"))) result name arguments;
#include "torch_shim.def"
#undef SHIM
}

// The shim version whose semantics the boxed kernels are written for: 2.10.0.
constexpr uint64_t kTorchShimVersion = (uint64_t{2} << 56) | (uint64_t{10} << 48);

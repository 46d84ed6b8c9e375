// What callers of tersor/cuda.h ask of the CUDA runtime, which is linked statically into libtersor_cuda: they need no
// CUDA headers and no driver until they launch. Errors are codes of cudaError_t, 0 is success.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

#include "tersor/error.h"

namespace tersor::cuda {

// Why no kernel can run here: no driver, no GPU, one that is too old. Empty when one can.
TERSOR_API std::string DeviceProblem();

// The runtime's own words for a code.
TERSOR_API std::string ErrorText(int code);

// Zeroes device memory in the order of the stream.
TERSOR_API int Zero(void* device_memory, size_t bytes, void* stream);

// Whether work given to the stream is recorded into a graph instead of being run.
TERSOR_API bool IsCapturing(void* stream);

}  // namespace tersor::cuda

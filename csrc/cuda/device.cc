#include <cuda_runtime_api.h>

#include "tersor/cuda_device.h"

namespace tersor::cuda {
namespace {

constexpr int kMinMajor = 8;  // compute capability 8.0: the matrix instructions and asynchronous copies

}  // namespace

std::string ErrorText(int code) { return cudaGetErrorString(static_cast<cudaError_t>(code)); }

std::string DeviceProblem() {
  int count = 0, best = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) {
    cudaGetLastError();  // or the next launch reports it
    return ErrorText(error);
  }
  for (int device = 0; device < count; ++device) {
    int major = 0;
    if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess && major > best)
      best = major;
  }
  if (count == 0) return "no CUDA device is visible";
  if (best < kMinMajor) return "compute capability 8.0 is needed, the best GPU has " + std::to_string(best) + ".x";
  return "";
}

int Zero(void* device_memory, size_t bytes, void* stream) {
  return cudaMemsetAsync(device_memory, 0, bytes, static_cast<cudaStream_t>(stream));
}

bool IsCapturing(void* stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  return cudaStreamIsCapturing(static_cast<cudaStream_t>(stream), &status) == cudaSuccess &&
         status != cudaStreamCaptureStatusNone;
}

}  // namespace tersor::cuda

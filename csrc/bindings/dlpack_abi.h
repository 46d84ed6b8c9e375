// The part of DLPack's C ABI, major version 1, through which torch lends and takes tensors without a Python call
// (`torch.Tensor.__dlpack_c_exchange_api__`). tests/python/test_dlpack_abi.py compares it with torch's own header.
#pragma once
#include <cstdint>

namespace tersor::dlpack {

constexpr uint32_t kMajor = 1;
constexpr int32_t kCpu = 1;
constexpr uint8_t kUInt = 1, kFloat = 2, kBfloat = 4;

struct Version {
  uint32_t major, minor;
};
struct DataType {
  uint8_t code, bits;
  uint16_t lanes;
};
struct View {
  void* data;
  int32_t device_type, device_id;
  int32_t ndim;
  DataType dtype;
  int64_t *shape, *strides;  // in elements
  uint64_t byte_offset;
};
struct Managed {
  Version version;
  void* manager_ctx;
  void (*deleter)(Managed*);
  uint64_t flags;
  View tensor;
};
struct Exchange {
  Version version;
  Exchange* prev;
  // Of the prototype it reads dtype, ndim, shape and device.
  int (*allocate)(View* prototype, Managed** out, void* context, void (*fail)(void*, const char*, const char*));
  int (*take)(void* object, Managed** out);
  int (*give)(Managed* tensor, void** object);  // steals the tensor; a new reference
  int (*look)(void* object, View* out);         // valid until Python runs again
  int (*stream)(int32_t device_type, int32_t device_id, void** out);
};

}  // namespace tersor::dlpack

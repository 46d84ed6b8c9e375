// Stands in for libtorch_cpu.so when _torch_ops.so is linked: the same soname and symbols, empty bodies. Never
// installed.
#define SHIM(result, name, arguments) \
  void name(void) {}
#include "torch_shim.def"

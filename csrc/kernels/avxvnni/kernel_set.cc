// Built twice: as avxvnni with the VEX encoding and as avxvnni_evex with the EVEX one.
#include "kernels/kernel_api.h"

#define TERSOR_JOIN_NAMES(a, b) a##b
#define TERSOR_JOIN(a, b) TERSOR_JOIN_NAMES(a, b)
#define TERSOR_QUOTE_NAME(a) #a
#define TERSOR_QUOTE(a) TERSOR_QUOTE_NAME(a)

namespace tersor {

const KernelSet& TERSOR_JOIN(KernelSet_, TERSOR_ISA_NAME)() {
  static const KernelSet set = {TERSOR_QUOTE(TERSOR_ISA_NAME), nullptr, nullptr, nullptr, nullptr};
  return set;
}

}  // namespace tersor

#include "core/registry.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <string>

#include "tersor/isa.h"

namespace tersor {

#define TERSOR_ISA_ENTRY(name, needs) const KernelSet& KernelSet_##name();
#define TERSOR_ISA_ELSEWHERE(name)
#include "isa_list.inc"
#undef TERSOR_ISA_ENTRY
#undef TERSOR_ISA_ELSEWHERE

namespace {

struct Entry {
  const char* name;
  CpuFeature needs;
  const KernelSet& (*set)();  // called only once `needs` is met: it is built with that ISA's flags
};

const Entry kEntries[] = {
#define TERSOR_ISA_ENTRY(name, needs) {#name, needs, KernelSet_##name},
#define TERSOR_ISA_ELSEWHERE(name)
#include "isa_list.inc"
#undef TERSOR_ISA_ENTRY
#undef TERSOR_ISA_ELSEWHERE
};

// In the list, but not of this architecture.
const char* const kElsewhere[] = {
#define TERSOR_ISA_ENTRY(name, needs)
#define TERSOR_ISA_ELSEWHERE(name) #name,
#include "isa_list.inc"
#undef TERSOR_ISA_ENTRY
#undef TERSOR_ISA_ELSEWHERE
    nullptr};

std::string Join(const std::vector<std::string>& names) {
  std::string all;
  for (const std::string& name : names) all += (all.empty() ? "" : ", ") + name;
  return all;
}

std::vector<std::string> RunnableNames() {
  std::vector<std::string> names;
  for (const KernelSet* set : RunnableKernelSets()) names.emplace_back(set->name);
  return names;
}

bool IsListed(const std::string& name) {
  for (const Entry& e : kEntries)
    if (name == e.name) return true;
  for (const char* const* e = kElsewhere; *e != nullptr; ++e)
    if (name == *e) return true;
  return false;
}

// The number of runnable sets up to and including `cap`; all of them for an empty cap.
size_t CountUnder(const std::string& cap, const char* asked_by) {
  const std::vector<std::string> names = RunnableNames();
  if (cap.empty()) return names.size();
  for (size_t i = 0; i < names.size(); ++i)
    if (names[i] == cap) return i + 1;
  const char* why = IsListed(cap) ? " cannot run on this CPU" : " is not an instruction set that tersor knows";
  throw Error(std::string(asked_by) + "=" + cap + why + "; this CPU can run: " + Join(names));
}

template <typename Kernel>
const Kernel* Best(const Kernel* KernelSet::* member, size_t count) {
  for (size_t i = count; i-- > 0;) {
    const Kernel* kernel = RunnableKernelSets()[i]->*member;
    if (kernel != nullptr) return kernel;
  }
  return nullptr;  // of spmm_s8_rows alone: scalar implements every op; test_registry checks it
}

Selection Select(size_t count) {
  Selection s{};
  s.quantize = Best(&KernelSet::quantize, count);
  s.convert = Best(&KernelSet::convert, count);
  s.activation = Best(&KernelSet::activation, count);
  s.activation_near = Best(&KernelSet::activation_near, count);
  s.gemm_s8 = Best(&KernelSet::gemm_s8, count);
  s.peak = Best(&KernelSet::peak, count);
  s.spmm_s8 = Best(&KernelSet::spmm_s8, count);
  s.spmm_f32 = Best(&KernelSet::spmm_f32, count);
  s.spmm_s8_rows = Best(&KernelSet::spmm_s8_rows, count);
  s.conv_s8 = Best(&KernelSet::conv_s8, count);
  s.depthwise_s8 = Best(&KernelSet::depthwise_s8, count);
  s.gemm_bytes_s8 = Best(&KernelSet::gemm_bytes_s8, count);
  s.attention = Best(&KernelSet::attention, count);
  s.norm = Best(&KernelSet::norm, count);
  s.gemm_f32 = Best(&KernelSet::gemm_f32, count);
  s.lut4 = Best(&KernelSet::lut4, count);
  s.recurrent = Best(&KernelSet::recurrent, count);
  s.embedding = Best(&KernelSet::embedding, count);
  s.isa = RunnableKernelSets()[count - 1]->name;
  return s;
}

// One selection per possible cap, made once; the active one is a pointer into them.
struct State {
  std::vector<Selection> by_count;
  std::atomic<const Selection*> active;
  State() {
    for (size_t count = 1; count <= RunnableKernelSets().size(); ++count) by_count.push_back(Select(count));
    const char* cap = std::getenv("TERSOR_ISA");
    active = &by_count[CountUnder(cap == nullptr ? "" : cap, "TERSOR_ISA") - 1];
  }
};

State& GetState() {
  static State state;  // a bad TERSOR_ISA throws here, at the first use and at every later one
  return state;
}

}  // namespace

const std::vector<const KernelSet*>& RunnableKernelSets() {
  static const std::vector<const KernelSet*> sets = [] {
    const CpuFeature have = DetectCpuFeatures();
    std::vector<const KernelSet*> runnable;
    for (const Entry& e : kEntries)
      if (HasAll(have, e.needs)) runnable.push_back(&e.set());
    return runnable;
  }();
  return sets;
}

const Selection& Selected() { return *GetState().active.load(std::memory_order_relaxed); }

std::vector<std::string> BuiltIsas() {
  std::vector<std::string> names;
  for (const Entry& e : kEntries) names.emplace_back(e.name);
  return names;
}

std::vector<std::string> AvailableIsas() {
  std::vector<std::string> names = RunnableNames();
  const size_t count = static_cast<size_t>(&Selected() - GetState().by_count.data()) + 1;
  names.resize(count);
  return names;
}

std::string ActiveIsa() { return Selected().isa; }

int64_t RunInt8Peak(int64_t iterations) { return Selected().peak->int8(iterations); }

void SetIsaCap(const std::string& name) { GetState().active = &GetState().by_count[CountUnder(name, "isa") - 1]; }

}  // namespace tersor

// In this program only children of fork touch the active selection: it reads TERSOR_ISA once per process.
#include <cstdlib>
#include <cstring>
#include <set>
#include <string>
#include <vector>

#include "check.h"
#include "core/registry.h"
#include "kernels/embedding_api.h"
#include "kernels/lut4_api.h"
#include "kernels/recurrent_api.h"
#include "ops/packed_s8.h"
#include "ops/packed_spmm_f32.h"
#include "ops/packed_spmm_s8.h"
#include "tersor/isa.h"
#include "tersor/linear_s8.h"

namespace {

using tersor::KernelSet;
using tersor::RunnableKernelSets;
using tersor::testing::ErrorOf;
using tersor::testing::Holds;
using tersor::testing::InChild;

bool EndsWith(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

// The id of the GEMM kernel that dispatch chooses under `isa`: the best set up to it that has one.
std::string ExpectedGemmId(const std::string& isa) {
  std::string id;
  for (const KernelSet* set : RunnableKernelSets()) {
    if (set->gemm_s8 != nullptr) id = set->gemm_s8->id;
    if (isa == set->name) return id;
  }
  return "";
}

std::string PackedKernelId() {
  std::vector<char> packed(tersor::PackedBytesS8(3, 5));
  tersor::PackBeginS8(3, 5, packed.data(), packed.size());
  return tersor::InspectPackedS8(packed.data(), packed.size()).kernel;
}

int BadVariable() {
  setenv("TERSOR_ISA", "avx513", 1);
  for (int i = 0; i < 2; ++i) {  // at the first use and at each later one
    const std::string message = ErrorOf([] { tersor::ActiveIsa(); });
    if (!Holds(message, "TERSOR_ISA=avx513") || !Holds(message, "scalar")) return 1;
    for (const KernelSet* set : RunnableKernelSets())
      if (!Holds(message, set->name)) return 2;
  }
  return ErrorOf([] { tersor::PackedBytesS8(3, 5); }).empty() ? 3 : 0;
}

int ForeignVariable() {
#if defined(__x86_64__)
  setenv("TERSOR_ISA", "neon_dotprod", 1);
#else
  setenv("TERSOR_ISA", "avx2", 1);
#endif
  return Holds(ErrorOf([] { tersor::ActiveIsa(); }), "cannot run on this CPU") ? 0 : 1;
}

int EveryVariable() {
  for (const KernelSet* set : RunnableKernelSets()) {
    setenv("TERSOR_ISA", set->name, 1);
    const int result = InChild([] {
      const std::string isa = std::getenv("TERSOR_ISA");
      if (tersor::ActiveIsa() != isa || tersor::AvailableIsas().back() != isa) return 1;
      return PackedKernelId() == ExpectedGemmId(isa) ? 0 : 2;
    });
    if (result != 0) return result;
  }
  return 0;
}

int EveryCap() {
  const std::string best = RunnableKernelSets().back()->name;
  for (const KernelSet* set : RunnableKernelSets()) {
    tersor::SetIsaCap(set->name);
    if (tersor::ActiveIsa() != set->name) return 1;
    if (PackedKernelId() != ExpectedGemmId(set->name)) return 2;
    const std::string message = ErrorOf([] { tersor::SetIsaCap("sse9"); });
    if (!Holds(message, "sse9") || !Holds(message, best)) return 3;
    if (tersor::ActiveIsa() != set->name) return 4;  // a bad cap changes nothing
  }
  tersor::SetIsaCap("");
  return tersor::ActiveIsa() == best ? 0 : 5;
}

}  // namespace

TEST(ScalarComesFirstAndHasEveryKernel) {
  const KernelSet& scalar = *RunnableKernelSets().front();
  CHECK(std::strcmp(scalar.name, "scalar") == 0);
  CHECK(scalar.quantize != nullptr && scalar.convert != nullptr && scalar.activation != nullptr);
  CHECK(scalar.gemm_s8 != nullptr && scalar.peak != nullptr && scalar.spmm_s8 != nullptr);
  CHECK(scalar.spmm_f32 != nullptr && scalar.conv_s8 != nullptr && scalar.depthwise_s8 != nullptr);
  CHECK(scalar.gemm_f32 != nullptr);
}

TEST(NamesAreUniqueAndEndInTheirIsa) {
  std::set<std::string> ids;
  for (const KernelSet* set : RunnableKernelSets()) {
    std::vector<std::string> own;
    if (set->quantize != nullptr) own.emplace_back(set->quantize->id);
    if (set->convert != nullptr) own.emplace_back(set->convert->id);
    if (set->activation != nullptr) own.emplace_back(set->activation->id);
    if (set->gemm_s8 != nullptr) {
      const tersor::GemmS8Kernel& gemm = *set->gemm_s8;
      own.emplace_back(gemm.id);
      const std::string tile = std::to_string(gemm.mr) + "x" + std::to_string(gemm.nr);
      CHECK_OR(own.back() == "gemm_s8_" + tile + "_" + set->name, "%s has a %s tile", gemm.id, tile.c_str());
    }
    if (set->spmm_s8 != nullptr) {
      const tersor::SpmmS8Kernel& spmm = *set->spmm_s8;
      own.emplace_back(spmm.id);
      const std::string tile = std::to_string(spmm.rows) + "x" + std::to_string(spmm.strip);
      CHECK_OR(own.back() == "spmm_s8_" + tile + "_" + set->name, "%s has a %s tile", spmm.id, tile.c_str());
    }
    if (set->spmm_f32 != nullptr) {
      const tersor::SpmmF32Kernel& spmm = *set->spmm_f32;
      own.emplace_back(spmm.id);
      const std::string tile = std::to_string(spmm.rows) + "x" + std::to_string(spmm.strip);
      CHECK_OR(own.back() == "spmm_f32_" + tile + "_" + set->name, "%s has a %s tile", spmm.id, tile.c_str());
    }
    if (set->gemm_f32 != nullptr) {
      const tersor::GemmF32Kernel& gemm = *set->gemm_f32;
      own.emplace_back(gemm.id);
      const std::string tile = std::to_string(gemm.mr) + "x" + std::to_string(gemm.nr);
      CHECK_OR(own.back() == "gemm_f32_" + tile + "_" + set->name, "%s has a %s tile", gemm.id, tile.c_str());
    }
    if (set->lut4 != nullptr) own.emplace_back(set->lut4->id);
    if (set->recurrent != nullptr) own.emplace_back(set->recurrent->id);
    if (set->embedding != nullptr) own.emplace_back(set->embedding->id);
    if (set->spmm_s8_rows != nullptr) own.emplace_back(set->spmm_s8_rows->id);
    if (set->conv_s8 != nullptr) own.emplace_back(set->conv_s8->id);
    if (set->depthwise_s8 != nullptr) own.emplace_back(set->depthwise_s8->id);
    if (set->gemm_bytes_s8 != nullptr) own.emplace_back(set->gemm_bytes_s8->id);
    for (const std::string& id : own) {
      CHECK_OR(EndsWith(id, std::string("_") + set->name), "%s in set %s", id.c_str(), set->name);
      CHECK_OR(ids.insert(id).second, "%s twice", id.c_str());
    }
  }
}

TEST(GemmKernelsKeepTheLawsOfTheContract) {
  for (const KernelSet* set : RunnableKernelSets()) {
    if (set->gemm_s8 == nullptr) continue;
    const tersor::GemmS8Kernel& gemm = *set->gemm_s8;
    CHECK(gemm.mr > 0 && gemm.nr > 0 && gemm.kr > 0 && gemm.row_limit > 0);
    CHECK_OR(tersor::kPackRowsS8 % gemm.nr == 0, "%s: nr=%d", gemm.id, gemm.nr);
    CHECK_OR(tersor::kMaxDepthS8 % gemm.kr == 0, "%s: kr=%d", gemm.id, gemm.kr);  // chunks start unpadded
    CHECK_OR(std::strlen(gemm.id) < sizeof(tersor::PackedHeaderS8::kernel_id), "%s does not fit the packed header",
             gemm.id);
  }
}

TEST(SparseKernelsKeepTheLawsOfTheContract) {
  for (const KernelSet* set : RunnableKernelSets()) {
    if (set->spmm_s8 == nullptr) continue;
    const tersor::SpmmS8Kernel& spmm = *set->spmm_s8;
    CHECK(spmm.rows > 0 && spmm.strip > 0 && spmm.depth > 0);
    CHECK_OR(16 % spmm.rows == 0 && spmm.strip % 16 == 0 && spmm.depth % 64 == 0, "%s: depth=%d", spmm.id, spmm.depth);
    CHECK_OR(int64_t{spmm.depth} * spmm.strip <= 65536, "%s: offsets into a panel need more than 16 bits", spmm.id);
    CHECK_OR(int64_t{spmm.strip} * 4 <= 1024, "%s: a panel is not readable at the highest offset", spmm.id);
    CHECK_OR(std::strlen(spmm.id) < sizeof(tersor::PackedHeaderSpmmS8::kernel_id), "%s does not fit the packed header",
             spmm.id);
  }
}

TEST(SparseFloatKernelsKeepTheLawsOfTheContract) {
  for (const KernelSet* set : RunnableKernelSets()) {
    if (set->spmm_f32 == nullptr) continue;
    const tersor::SpmmF32Kernel& spmm = *set->spmm_f32;
    CHECK(spmm.rows > 0 && spmm.strip > 0 && spmm.depth > 0);
    CHECK_OR(16 % spmm.rows == 0 && spmm.strip % 16 == 0 && spmm.depth % 16 == 0, "%s: depth=%d", spmm.id, spmm.depth);
    CHECK_OR(int64_t{spmm.depth} * spmm.strip * 4 < 65536, "%s: offsets into a panel need more than 16 bits", spmm.id);
    CHECK_OR(int64_t{spmm.strip} * 4 <= 1024, "%s: a panel is not readable at the highest offset", spmm.id);
    CHECK_OR(std::strlen(spmm.id) < sizeof(tersor::PackedHeaderSpmmF32::kernel_id), "%s does not fit the packed header",
             spmm.id);
  }
}

TEST(RunnableIsASubsetOfBuilt) {
  const std::vector<std::string> built = tersor::BuiltIsas();
  size_t at = 0;
  for (const KernelSet* set : RunnableKernelSets()) {
    while (at < built.size() && built[at] != set->name) ++at;
    CHECK_OR(at < built.size(), "%s is not in the built list, or out of order", set->name);
  }
}

TEST(VariableNamesAnUnknownIsa) { CHECK_OR(InChild(BadVariable) == 0, "child failed"); }
TEST(VariableNamesAnotherArchitecture) { CHECK_OR(InChild(ForeignVariable) == 0, "child failed"); }
TEST(VariableForcesEachIsa) { CHECK_OR(InChild(EveryVariable) == 0, "child failed"); }
TEST(CapForcesEachIsa) { CHECK_OR(InChild(EveryCap) == 0, "child failed"); }

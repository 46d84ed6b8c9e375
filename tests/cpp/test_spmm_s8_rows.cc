// Few rows through the form of masks: the kernel's sums are exact on awkward shapes and patterns, the op has the bits
// of the definition, and a damaged section leads nowhere.
#include <cstring>

#include "core/registry.h"
#include "ops/packed_spmm_s8.h"
#include "ops/packed_spmm_s8_rows.h"
#include "sparse_cases.h"

namespace {

using tersor::KernelSet;
using tersor::PackedViewSpmmS8Rows;
using tersor::RunnableKernelSets;
using tersor::SpmmS8RowsKernel;
using tersor::testing::CheckLinear;
using tersor::testing::ErrorOf;
using tersor::testing::Fill;
using tersor::testing::Holds;
using tersor::testing::kPatterns;
using tersor::testing::kSparse;
using tersor::testing::LinearCase;
using tersor::testing::PackSparse;
using tersor::testing::Pattern;
using tersor::testing::Thin;
using tersor::testing::UnderEachIsa;

template <typename Body>
void ForEachRowsKernel(Body body) {
  for (const KernelSet* set : RunnableKernelSets())
    if (set->spmm_s8_rows != nullptr) body(*set->spmm_s8_rows);
}

// 8-byte aligned memory that ends where the section does.
struct Section {
  Section(const SpmmS8RowsKernel& kernel, int64_t n, int64_t k, const std::vector<int8_t>& w)
      : bytes(tersor::BytesSpmmS8Rows(&kernel, n, k, w.data())), memory(bytes), data(memory.Place<char>(bytes)) {
    std::memset(data, 0, bytes);
    tersor::PackSpmmS8Rows(kernel, n, k, w.data(), data, bytes);
  }
  size_t bytes;
  tersor::testing::Fenced memory;
  char* data;
};

void CheckSums(const SpmmS8RowsKernel& kernel, const LinearCase& c, Fill fill) {
  const Section section(kernel, c.n, c.k, c.w);
  const PackedViewSpmmS8Rows view = tersor::ViewSpmmS8Rows(section.data, section.bytes, c.n, c.k);
  tersor::testing::Random random(7);
  const int64_t k_pad = view.blocks * 64, padded = view.groups * kernel.rows;
  std::vector<uint8_t> a(static_cast<size_t>(c.m * k_pad));
  const std::vector<uint8_t> live = tersor::testing::Activations(fill, c.m * c.k, random);
  for (int64_t i = 0; i < c.m; ++i) std::copy_n(live.begin() + i * c.k, c.k, a.begin() + i * k_pad);
  std::vector<int32_t> acc(static_cast<size_t>(c.m * padded)), expected(static_cast<size_t>(c.m * c.n));
  tersor::SpmmS8RowsArgs g{};
  g.m = static_cast<int32_t>(c.m);
  g.groups = static_cast<int32_t>(view.groups);
  g.blocks = static_cast<int32_t>(view.blocks);
  g.a = a.data();
  g.lda = k_pad;
  g.masks = view.masks;
  g.values = view.values;
  g.starts = view.starts;
  g.acc = acc.data();
  g.ld_acc = padded;
  kernel.multiply(g);
  tersor::reference::GemmS8(c.m, c.n, c.k, live.data(), c.k, c.w.data(), expected.data(), c.n);
  bool same = true;
  for (int64_t i = 0; i < c.m; ++i)
    same = same && std::equal(expected.begin() + i * c.n, expected.begin() + (i + 1) * c.n, acc.begin() + i * padded);
  CHECK_OR(same, "%s m=%d n=%d k=%d: sums differ", kernel.id, static_cast<int>(c.m), static_cast<int>(c.n),
           static_cast<int>(c.k));
}

// Large enough for several threads.
LinearCase Large(int64_t m, Pattern pattern, uint64_t seed) {
  LinearCase c(m, 1630, 1021, seed);
  Thin(pattern, seed, c);
  return c;
}

}  // namespace

TEST(SumsOfEveryPattern) {
  ForEachRowsKernel([](const SpmmS8RowsKernel& kernel) {
    uint64_t seed = 0;
    for (Pattern pattern : kPatterns)
      for (int64_t m = 1; m <= kernel.max_m; ++m)
        for (int64_t n : {1, 3, 4, 5, 33})
          for (int64_t k : {1, 63, 64, 65, 400}) {
            LinearCase c(m, n, k, ++seed);
            Thin(pattern, seed, c);
            CheckSums(kernel, c, seed % 2 == 0 ? Fill::kRandom : Fill::kHighest);
          }
    LinearCase deep(kernel.max_m, 5, tersor::kMaxDepthS8, 1);
    deep.w.assign(deep.w.size(), -127);
    CheckSums(kernel, deep, Fill::kHighest);
  });
}

TEST(TheOpHasTheBitsOfTheDefinition) {
  UnderEachIsa([] {
    const tersor::Executor three = {3, tersor::PoolExecutor().run};
    uint64_t seed = 0;
    for (int64_t m : {1, 2, 4})
      for (tersor::DType dtype : {tersor::DType::kF32, tersor::DType::kBf16, tersor::DType::kF16}) {
        ++seed;
        LinearCase c = Large(m, seed % 2 == 0 ? Pattern::kUnstructured : Pattern::kUneven, seed);
        c.Narrow(dtype);
        c.with_bias = seed % 3 != 0;
        c.with_residual = seed % 2 == 0;
        c.activation = seed % 2 == 0 ? tersor::Activation::kGelu : tersor::Activation::kNone;
        if (seed % 4 == 0) c.Smooth(seed);
        if (seed % 4 == 1) c.x[5] = NAN;
        const std::vector<char> packed = PackSparse(c);
        const std::vector<float> expected = c.Expected();
        CheckLinear(c, packed, tersor::SerialExecutor(), expected, seed % 4 == 0, kSparse);
        CheckLinear(c, packed, three, expected, false, kSparse);
      }
  });
}

TEST(WeightsWithManyQuadsGetTheSection) {
  UnderEachIsa([] {
    for (Pattern pattern : {Pattern::kUnstructured, Pattern::kOneColumn}) {
      LinearCase c(1, 66, 320, 3);
      Thin(pattern, 3, c);
      const std::vector<char> packed = PackSparse(c);
      const tersor::PackedViewSpmmS8 view = tersor::ViewPackedSpmmS8(packed.data(), packed.size());
      CHECK(view.rows.kernel == (pattern == Pattern::kOneColumn ? nullptr : tersor::Selected().spmm_s8_rows));
      std::vector<int8_t> w(c.w.size());
      std::vector<float> scale(c.scale.size());
      tersor::UnpackSpmmS8(packed.data(), packed.size(), w.data(), scale.data());
      CHECK(w == c.w);
    }
  });
}

TEST(DamagedSectionsAreHarmless) {
  ForEachRowsKernel([](const SpmmS8RowsKernel& kernel) {
    LinearCase c(1, 70, 500, 3);
    Thin(Pattern::kUnstructured, 3, c);
    const auto error = [&](auto damage) {
      const Section section(kernel, c.n, c.k, c.w);
      damage(*reinterpret_cast<tersor::PackedHeaderSpmmS8Rows*>(section.data),
             tersor::ViewSpmmS8Rows(section.data, section.bytes, c.n, c.k));
      return ErrorOf([&] { tersor::ViewSpmmS8Rows(section.data, section.bytes, c.n, c.k); });
    };
    CHECK(error([](auto&, auto&&) {}).empty());
    CHECK(Holds(error([](auto& h, auto&&) { h.bytes += 64; }), "damaged"));
    CHECK(Holds(error([](auto& h, auto&&) { h.nnz = -1; }), "damaged"));
    CHECK(Holds(error([](auto& h, auto&&) { h.nnz = int64_t{1} << 60; }), "damaged"));
    CHECK(Holds(error([](auto& h, auto&&) { std::memset(h.kernel_id, 'a', sizeof h.kernel_id); }), "damaged"));
    CHECK(Holds(error([](auto&, auto&& v) { v.starts[0] = 1; }), "damaged"));
    CHECK(Holds(error([](auto&, auto&& v) { v.starts[3] = -5; }), "damaged"));
    CHECK(Holds(error([](auto&, auto&& v) { v.starts[v.groups] += 1; }), "damaged"));
    const Section section(kernel, c.n, c.k, c.w);
    const PackedViewSpmmS8Rows view = tersor::ViewSpmmS8Rows(section.data, section.bytes, c.n, c.k);
    std::fill_n(view.masks, view.groups * view.blocks * kernel.rows, ~uint64_t{0});
    std::vector<uint8_t> a(512);
    std::vector<int32_t> acc(72);
    tersor::SpmmS8RowsArgs g{1,
                             static_cast<int32_t>(view.groups),
                             static_cast<int32_t>(view.blocks),
                             a.data(),
                             512,
                             view.masks,
                             view.values,
                             view.starts,
                             acc.data(),
                             72};
    kernel.multiply(g);  // a read outside of the section is a fault
    CHECK(acc[0] == 0);
  });
}

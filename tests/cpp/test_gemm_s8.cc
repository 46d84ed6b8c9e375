// Every GEMM kernel, called as the op calls it, on operands that end at an unmapped page.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <vector>

#include "check.h"
#include "core/registry.h"
#include "gemm_cases.h"
#include "kernels/reference/linear_s8_ref.h"
#include "tersor/linear_s8.h"

namespace {

using tersor::GemmS8Args;
using tersor::GemmS8Kernel;
using tersor::testing::Fenced;
using tersor::testing::Fill;
using tersor::testing::Positive;
using tersor::testing::Quick;
using tersor::testing::Random;
using tersor::testing::SameFloat;
using tersor::testing::TooManyFailures;

// One product A [m][k] x W [n][k] with the panels of W, and everything an epilogue needs.
struct Product {
  const GemmS8Kernel& kernel;
  int32_t m, n, k;
  std::vector<uint8_t> a;
  std::vector<int8_t> w;
  std::vector<int32_t> expected, row_zero, col_sum;
  std::vector<float> row_scale, col_scale, bias, residual;
  Fenced a_memory, panel_memory, out_memory, residual_memory;
  Fenced row_memory[2] = {Fenced{4096}, Fenced{4096}}, column_memory[3] = {Fenced{8192}, Fenced{8192}, Fenced{8192}};
  int64_t lda = 0;
  const uint8_t* a_placed = nullptr;
  char* panels = nullptr;

  Product(const GemmS8Kernel& gemm, int32_t max_m, int32_t max_n, int64_t depth, Fill fill, Random& random)
      : kernel(gemm),
        m(max_m),
        n(max_n),
        k(static_cast<int32_t>(depth)),
        a_memory(static_cast<size_t>(m) * (static_cast<size_t>(k) + 128)),
        panel_memory(static_cast<size_t>(Panels(n)) * gemm.panel_bytes(k)),
        out_memory(static_cast<size_t>(m * (n + 10)) * sizeof(int32_t)),
        residual_memory(static_cast<size_t>(m * (n + 10)) * sizeof(float)) {
    a = tersor::testing::Activations(fill, int64_t{m} * k, random);
    w = tersor::testing::Weights(fill, int64_t{n} * k, random);
    expected.resize(static_cast<size_t>(m) * static_cast<size_t>(n));
    tersor::reference::GemmS8(m, n, k, a.data(), k, w.data(), expected.data(), n);
    FillEpilogue(random);
    PlaceActivations(random.Int(0, 9));
  }

  int32_t Panels(int32_t columns) const { return (columns + kernel.nr - 1) / kernel.nr; }

  void FillEpilogue(Random& random) {
    const size_t padded = static_cast<size_t>(Panels(n) * kernel.nr);
    col_sum.assign(padded, 0);
    col_scale.assign(padded, 0.0f);
    bias.assign(padded, 0.0f);
    for (int32_t j = 0; j < n; ++j) {
      for (int32_t p = 0; p < k; ++p) col_sum[static_cast<size_t>(j)] += w[static_cast<size_t>(j * k + p)];
      col_scale[static_cast<size_t>(j)] = random.Uniform(0.001f, 0.1f);
      bias[static_cast<size_t>(j)] = random.Uniform(-3.0f, 3.0f);
    }
    for (int32_t i = 0; i < m; ++i) {
      row_zero.push_back(random.Int(0, 3) == 0 ? 255 * random.Int(0, 1) : random.Int(0, 255));
      row_scale.push_back(i == 1 ? std::nanf("") : random.Uniform(0.001f, 0.1f));
    }
    for (int32_t i = 0; i < m * n; ++i) residual.push_back(random.Uniform(-9.0f, 9.0f));
  }

  // Zero padded to kr, at any alignment, rows `extra` bytes apart: what lies between them is never read as zero.
  void PlaceActivations(int32_t extra) {
    const int64_t padded = (int64_t{k} + kernel.kr - 1) / kernel.kr * kernel.kr;
    lda = padded + extra;
    uint8_t* to = a_memory.Place<uint8_t>(static_cast<size_t>((m - 1) * lda + padded));
    for (int32_t i = 0; i < m; ++i) {
      std::memset(to + i * lda, 0, static_cast<size_t>(padded));
      std::memcpy(to + i * lda, a.data() + int64_t{i} * k, static_cast<size_t>(k));
    }
    a_placed = to;
  }

  // The first `columns` rows of W.
  void Pack(int32_t columns) {
    const size_t bytes = kernel.panel_bytes(k);
    panels = panel_memory.Place<char>(bytes * static_cast<size_t>(Panels(columns)));
    for (int32_t j = 0; j < columns; j += kernel.nr)
      kernel.pack_panel(std::min(kernel.nr, columns - j), k, w.data() + int64_t{j} * k, k,
                        panels + bytes * static_cast<size_t>(j / kernel.nr));
    CHECK_OR(panel_memory.FrontIntact(), "%s: pack_panel wrote in front of the panel", kernel.id);
    // Zero padded: nothing of the memory's former content is left.
    const int32_t last = (columns - 1) / kernel.nr;
    std::vector<char> again(bytes, 'x');
    kernel.pack_panel(columns - last * kernel.nr, k, w.data() + int64_t{last} * kernel.nr * k, k, again.data());
    CHECK_OR(std::memcmp(again.data(), panels + bytes * static_cast<size_t>(last), bytes) == 0,
             "%s n=%d k=%d: pack_panel left bytes unwritten", kernel.id, columns, k);
  }

  void Unpack(int32_t columns) {
    std::vector<int8_t> back(static_cast<size_t>(columns) * static_cast<size_t>(k + 3), 99);
    const size_t bytes = kernel.panel_bytes(k);
    for (int32_t j = 0; j < columns; j += kernel.nr)
      kernel.unpack_panel(std::min(kernel.nr, columns - j), k, panels + bytes * static_cast<size_t>(j / kernel.nr),
                          back.data() + int64_t{j} * (k + 3), k + 3);
    for (int32_t j = 0; j < columns; ++j)
      for (int32_t p = 0; p < k + 3; ++p) {
        const int8_t want = p < k ? w[static_cast<size_t>(j * k + p)] : int8_t{99};
        const int8_t got = back[static_cast<size_t>(j * (k + 3) + p)];
        CHECK_OR(got == want, "%s unpack n=%d k=%d: w[%d][%d] is %d, not %d", kernel.id, columns, k, j, p, got, want);
      }
  }

  GemmS8Args Args(int32_t rows, int32_t columns) {
    const size_t padded = static_cast<size_t>(Panels(columns) * kernel.nr), live = static_cast<size_t>(rows);
    GemmS8Args g{};
    g.m = rows;
    g.n = columns;
    g.k = k;
    g.a = a_placed + (m - rows) * lda;  // the last rows: they end at the fence
    g.lda = lda;
    g.panel = panels;
    g.col_sum = column_memory[0].Copy(std::vector<int32_t>(col_sum.begin(), col_sum.begin() + Offset(padded)));
    g.col_scale = column_memory[1].Copy(std::vector<float>(col_scale.begin(), col_scale.begin() + Offset(padded)));
    g.bias = column_memory[2].Copy(std::vector<float>(bias.begin(), bias.begin() + Offset(padded)));
    g.row_zero = row_memory[0].Copy(std::vector<int32_t>(row_zero.end() - Offset(live), row_zero.end()));
    g.row_scale = row_memory[1].Copy(std::vector<float>(row_scale.end() - Offset(live), row_scale.end()));
    return g;
  }
  static int64_t Offset(size_t count) { return static_cast<int64_t>(count); }

  int32_t Exact(int32_t rows, int32_t i, int32_t j) const {
    return expected[static_cast<size_t>((m - rows + i) * n + j)];
  }
  float Finished(int32_t rows, int32_t i, int32_t j, bool with_residual) const {
    const size_t row = static_cast<size_t>(m - rows + i), column = static_cast<size_t>(j);
    const float y = tersor::reference::Epilogue(Exact(rows, i, j), row_zero[row], col_sum[column], row_scale[row],
                                                col_scale[column], bias[column]);
    return with_residual ? y + residual[row * static_cast<size_t>(n) + column] : y;
  }
};

using Entry = void (*)(const GemmS8Args&);

bool GapsUntouched(const void* begin, int32_t rows, int32_t columns, int64_t stride) {
  const char* p = static_cast<const char*>(begin);
  for (int32_t i = 0; i + 1 < rows; ++i)
    if (!Fenced::Untouched(p + (i * stride + columns) * 4, p + (i + 1) * stride * 4)) return false;
  return true;
}

size_t Extent(int32_t rows, int32_t columns, int64_t stride) {
  return static_cast<size_t>((rows - 1) * stride + columns);
}

void CheckIntegers(Product& product, Entry entry, const char* what, int32_t rows, int32_t columns, int64_t stride) {
  GemmS8Args g = product.Args(rows, columns);
  g.acc = product.out_memory.Place<int32_t>(Extent(rows, columns, stride));
  g.ld_acc = stride;
  entry(g);
  for (int32_t i = 0; i < rows; ++i)
    for (int32_t j = 0; j < columns; ++j) {
      const int32_t got = g.acc[i * stride + j], want = product.Exact(rows, i, j);
      CHECK_OR(got == want, "%s %s m=%d n=%d k=%d: acc[%d][%d] is %d, not %d", product.kernel.id, what, rows, columns,
               product.k, i, j, got, want);
    }
  CHECK_OR(product.out_memory.FrontIntact() && GapsUntouched(g.acc, rows, columns, stride),
           "%s %s m=%d n=%d wrote outside acc", product.kernel.id, what, rows, columns);
}

enum class Residual { kNone, kSeparate, kInPlace };

void CheckFloats(Product& product, Entry entry, const char* what, int32_t rows, int32_t columns, int64_t stride,
                 Residual kind) {
  GemmS8Args g = product.Args(rows, columns);
  g.c = product.out_memory.Place<float>(Extent(rows, columns, stride));
  g.ldc = stride;
  if (kind != Residual::kNone) {
    g.ldr = kind == Residual::kInPlace ? stride : stride + 2;
    float* r = kind == Residual::kInPlace ? g.c : product.residual_memory.Place<float>(Extent(rows, columns, g.ldr));
    for (int32_t i = 0; i < rows; ++i)
      for (int32_t j = 0; j < columns; ++j)
        r[i * g.ldr + j] = product.residual[static_cast<size_t>((product.m - rows + i) * product.n + j)];
    g.residual = r;
  }
  entry(g);
  for (int32_t i = 0; i < rows; ++i)
    for (int32_t j = 0; j < columns; ++j) {
      const float got = g.c[i * stride + j], want = product.Finished(rows, i, j, kind != Residual::kNone);
      CHECK_OR(SameFloat(got, want), "%s %s m=%d n=%d k=%d: c[%d][%d] is %a, not %a", product.kernel.id, what, rows,
               columns, product.k, i, j, static_cast<double>(got), static_cast<double>(want));
    }
  CHECK_OR(product.out_memory.FrontIntact() && GapsUntouched(g.c, rows, columns, stride),
           "%s %s m=%d n=%d wrote outside c", product.kernel.id, what, rows, columns);
}

void CheckBlock(Product& product, Entry entry, const char* what, int32_t rows, int32_t columns, Random& random) {
  if (TooManyFailures()) return;
  CheckIntegers(product, entry, what, rows, columns, columns + random.Int(0, 5));
  const Residual kind = static_cast<Residual>(random.Int(0, 2));
  CheckFloats(product, entry, what, rows, columns, columns + random.Int(0, 5), kind);
}

void CheckTiles(Product& product, int32_t columns, Random& random) {
  product.Pack(columns);
  product.Unpack(columns);
  const int32_t mr = product.kernel.mr;
  for (int32_t rows = 1; rows <= mr; ++rows)
    if (!Quick() || rows < 3 || rows > mr - 2) CheckBlock(product, product.kernel.tile, "tile", rows, columns, random);
}

void CheckRows(Product& product, int32_t columns, Random& random) {
  product.Pack(columns);
  product.Unpack(columns);
  for (int32_t rows = 1; rows <= product.kernel.row_limit; ++rows)
    if (!Quick() || rows < 3 || rows > product.kernel.row_limit - 2)
      CheckBlock(product, product.kernel.rows, "rows", rows, columns, random);
}

std::vector<int64_t> TestedDepths() {
  return Quick() ? std::vector<int64_t>{1, 5, 63, 65, 129} : tersor::testing::Depths();
}

template <typename Body>
void ForEachGemm(Body body) {
  for (const tersor::KernelSet* set : tersor::RunnableKernelSets())
    if (set->gemm_s8 != nullptr) body(*set->gemm_s8);
}

}  // namespace

TEST(TileEqualsTheReference) {
  ForEachGemm([](const GemmS8Kernel& gemm) {
    Random random(1);
    const int32_t nr = gemm.nr;
    for (const int64_t k : TestedDepths())
      for (const Fill fill : tersor::testing::kFills) {
        Product product(gemm, gemm.mr, nr, k, fill, random);
        for (int32_t n : Positive({1, 3, nr / 2, nr / 2 + 1, nr - 1, nr})) CheckTiles(product, n, random);
      }
  });
}

TEST(FewRowsEqualTheReference) {
  ForEachGemm([](const GemmS8Kernel& gemm) {
    Random random(2);
    const int32_t nr = gemm.nr;
    for (const int64_t k : TestedDepths())
      for (const Fill fill : tersor::testing::kFills) {
        Product product(gemm, gemm.row_limit, 5 * nr + 5, k, fill, random);
        for (int32_t n : Positive({1, nr - 1, nr, nr + 1, 2 * nr, 3 * nr + 5, 5 * nr + 5}))
          CheckRows(product, n, random);
      }
  });
}

// The deepest chunk: exact sums reach 2^31 - 2^24.
TEST(DeepestChunkDoesNotOverflow) {
  ForEachGemm([](const GemmS8Kernel& gemm) {
    Random random(3);
    for (const Fill fill : {Fill::kHighest, Fill::kLowest, Fill::kRandom}) {
      Product product(gemm, 2, 3, tersor::kMaxDepthS8, fill, random);
      product.Pack(3);
      CheckBlock(product, gemm.tile, "tile", std::min(2, gemm.mr), 3, random);
      CheckBlock(product, gemm.rows, "rows", std::min(2, gemm.row_limit), 3, random);
    }
  });
}

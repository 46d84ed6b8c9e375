#include <cmath>
#include <vector>

#include "check.h"
#include "core/registry.h"
#include "half_ref.h"

namespace {

using tersor::ConvertKernel;
using tersor::DType;
using tersor::testing::BitsOf;
using tersor::testing::Fenced;
using tersor::testing::FloatOf;
using tersor::testing::FloatToHalf;
using tersor::testing::HalfToFloat;
using tersor::testing::Random;

template <typename Body>
void ForEachConvert(Body body) {
  for (const tersor::KernelSet* set : tersor::RunnableKernelSets())
    if (set->convert != nullptr)
      for (DType dtype : {DType::kBf16, DType::kF16}) body(*set->convert, dtype);
}

bool IsNanHalf(DType dtype, uint16_t half) { return (half & 0x7fff) > (dtype == DType::kBf16 ? 0x7f80 : 0x7c00); }

void CheckFromFloats(const ConvertKernel& kernel, DType dtype, const std::vector<float>& x) {
  std::vector<uint16_t> got(x.size());
  kernel.from_f32(dtype, static_cast<int64_t>(x.size()), x.data(), got.data());
  for (size_t i = 0; i < x.size(); ++i) {
    const bool right = std::isnan(x[i]) ? IsNanHalf(dtype, got[i]) : got[i] == FloatToHalf(dtype, x[i]);
    CHECK_OR(right, "%s dtype %d: %a (%08x) gives %04x", kernel.id, static_cast<int>(dtype), static_cast<double>(x[i]),
             BitsOf(x[i]), got[i]);
  }
}

}  // namespace

TEST(EveryHalfToFloatAndBack) {
  ForEachConvert([](const ConvertKernel& kernel, DType dtype) {
    std::vector<uint16_t> halves(65536), back(65536);
    for (size_t i = 0; i < halves.size(); ++i) halves[i] = static_cast<uint16_t>(i);
    std::vector<float> wide(65536);
    kernel.to_f32(dtype, 65536, halves.data(), wide.data());
    kernel.from_f32(dtype, 65536, wide.data(), back.data());
    for (size_t i = 0; i < halves.size(); ++i) {
      const float want = HalfToFloat(dtype, halves[i]);
      CHECK_OR(tersor::testing::SameFloat(wide[i], want), "%s dtype %d: %04zx gives %a, not %a", kernel.id,
               static_cast<int>(dtype), i, static_cast<double>(wide[i]), static_cast<double>(want));
      const bool same = std::isnan(want) ? IsNanHalf(dtype, back[i]) : back[i] == halves[i];
      CHECK_OR(same, "%s dtype %d: %04zx comes back as %04x", kernel.id, static_cast<int>(dtype), i, back[i]);
    }
  });
}

TEST(FloatsRoundToNearestEven) {
  ForEachConvert([](const ConvertKernel& kernel, DType dtype) {
    Random random(1);
    std::vector<float> x;
    for (int i = 0; i < (tersor::testing::Quick() ? 20000 : 1000000); ++i)
      x.push_back(FloatOf(static_cast<uint32_t>(random.Bits())));
    for (uint32_t half = 0; half < 0x7fff; ++half) {  // every tie, and its two neighbours
      const float low = HalfToFloat(dtype, static_cast<uint16_t>(half));
      const float high = HalfToFloat(dtype, static_cast<uint16_t>(half + 1));
      const uint32_t middle = BitsOf(static_cast<float>((static_cast<double>(low) + static_cast<double>(high)) / 2));
      for (uint32_t bits : {middle - 1, middle, middle + 1}) {
        x.push_back(FloatOf(bits));
        x.push_back(FloatOf(bits | 0x80000000u));
      }
    }
    for (float v : {65519.0f, 65520.0f, 65536.0f, 0x1p-25f, 0x1.000002p-25f, 0x1p-149f, 3.4028235e38f, INFINITY, NAN})
      x.push_back(v), x.push_back(-v);
    CheckFromFloats(kernel, dtype, x);
  });
}

// NaN with a payload in the bits that are cut off stays NaN.
TEST(NanStaysNan) {
  ForEachConvert([](const ConvertKernel& kernel, DType dtype) {
    std::vector<float> x;
    for (int bit = 0; bit < 23; ++bit)
      for (uint32_t sign : {0u, 0x80000000u}) x.push_back(FloatOf(sign | 0x7f800000u | 1u << bit));
    x.push_back(FloatOf(0x7fffffffu));
    x.push_back(FloatOf(0xffffffffu));
    CheckFromFloats(kernel, dtype, x);
  });
}

TEST(EveryLengthAtEveryOffset) {
  ForEachConvert([](const ConvertKernel& kernel, DType dtype) {
    Fenced narrow{4096}, wide{4096};
    Random random(2);
    for (size_t n = 0; n <= 70; ++n) {
      std::vector<uint16_t> halves(n);
      for (uint16_t& h : halves) h = FloatToHalf(dtype, random.Uniform(-9.0f, 9.0f));
      float* floats = wide.Place<float>(n);
      kernel.to_f32(dtype, static_cast<int64_t>(n), narrow.Copy(halves), floats);
      for (size_t i = 0; i < n; ++i) CHECK(floats[i] == HalfToFloat(dtype, halves[i]));
      uint16_t* back = narrow.Place<uint16_t>(n);
      kernel.from_f32(dtype, static_cast<int64_t>(n), floats, back);
      for (size_t i = 0; i < n; ++i) CHECK(back[i] == halves[i]);
      CHECK_OR(narrow.FrontIntact() && wide.FrontIntact(), "%s n=%zu wrote in front", kernel.id, n);
    }
  });
}

TEST(ProductOfEveryLength) {
  ForEachConvert([](const ConvertKernel& kernel, DType) {
    Fenced left{4096}, right{4096}, out{4096};
    Random random(3);
    for (size_t n = 0; n <= 70; ++n) {
      std::vector<float> a, b;
      for (size_t i = 0; i < n; ++i) a.push_back(random.Uniform(-9, 9)), b.push_back(random.Uniform(0, 9));
      float *x = left.Copy(a), *y = right.Copy(b), *z = out.Place<float>(n);
      kernel.multiply(static_cast<int64_t>(n), x, y, z);
      kernel.multiply(static_cast<int64_t>(n), x, y, x);
      for (size_t i = 0; i < n; ++i) CHECK(z[i] == a[i] * b[i] && x[i] == z[i]);
      CHECK_OR(out.FrontIntact() && left.FrontIntact(), "%s n=%zu wrote in front", kernel.id, n);
    }
  });
}

TEST(FloatIsCopied) {
  ForEachConvert([](const ConvertKernel& kernel, DType) {
    const float x[3] = {1.5f, -0.0f, 3e38f};
    float y[3] = {}, z[3] = {};
    kernel.to_f32(DType::kF32, 3, x, y);
    kernel.from_f32(DType::kF32, 3, x, z);
    CHECK(std::memcmp(x, y, sizeof x) == 0 && std::memcmp(x, z, sizeof x) == 0);
  });
}

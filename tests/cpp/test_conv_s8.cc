#include <cmath>
#include <limits>

#include "check.h"
#include "core/registry.h"
#include "data.h"
#include "kernels/reference/conv_s8_ref.h"
#include "linear_run.h"
#include "tersor/conv_s8.h"

namespace {

using namespace tersor;
using testing::ErrorOf;
using testing::Fenced;
using testing::Holds;
using testing::Random;
using testing::SameFloat;
using testing::TooManyFailures;
using testing::UnderEachIsa;

template <typename T>
std::vector<T> Bytes(int64_t count, int32_t lo, int32_t hi, Random& random) {
  std::vector<T> values(static_cast<size_t>(count));
  for (T& v : values) v = static_cast<T>(random.Int(lo, hi));
  return values;
}

struct Case {
  ConvShape shape;
  int64_t batch, height, width;
  ConvActivation activation = ConvActivation::kNone;
  bool with_bias = true, with_residual = false, extreme = false;
  Quantized x_as{0.02f, 7}, residual_as{0.03f, 200}, y_as{0.5f, 31};
};

ConvShape Shape(int64_t in, int64_t out, int64_t groups, int64_t kernel, int64_t stride, int64_t pad,
                int64_t dilation = 1) {
  return {in, out, groups, kernel, kernel, stride, stride, dilation, dilation, pad, pad, pad, pad};
}

struct Data {
  explicit Data(const Case& c, uint64_t seed) : random(seed) {
    const ConvShape& s = c.shape;
    const int64_t outputs = c.batch * s.OutHeight(c.height) * s.OutWidth(c.width) * s.out_channels;
    x = Bytes<uint8_t>(c.batch * c.height * c.width * s.in_channels, c.extreme ? 255 : 0, 255, random);
    w = Bytes<int8_t>(s.out_channels * s.depth(), c.extreme ? 127 : -127, 127, random);
    residual = Bytes<uint8_t>(outputs, 0, 255, random);
    for (int64_t i = 0; i < s.out_channels; ++i) {
      scale.push_back(random.Uniform(0.001f, 0.02f));
      bias.push_back(c.with_bias ? random.Uniform(-3.0f, 3.0f) : 0.0f);
    }
    packed.resize(PackedBytesConvS8(s) / 8);
    PackConvS8(s, w.data(), scale.data(), packed.data(), packed.size() * 8);
  }
  Random random;
  std::vector<uint8_t> x, residual;
  std::vector<int8_t> w;
  std::vector<float> scale, bias;
  std::vector<uint64_t> packed;
};

std::vector<float> Expected(const Case& c, const Data& d) {
  const ConvShape& s = c.shape;
  const std::vector<int32_t> sums =
      reference::ConvSums(s, c.batch, c.height, c.width, d.x.data(), c.x_as.zero_point, d.w.data());
  std::vector<float> y;
  for (size_t i = 0; i < sums.size(); ++i) {
    const size_t n = i % static_cast<size_t>(s.out_channels);
    float v = reference::ConvValue(sums[i], c.x_as.scale, d.scale[n], d.bias[n]);
    if (c.with_residual) v += reference::Value(d.residual[i], c.residual_as);
    y.push_back(reference::ConvActivate(c.activation, v));
  }
  if (c.activation == ConvActivation::kSilu) Activate(Activation::kSilu, static_cast<int64_t>(y.size()), y.data());
  return y;
}

ConvS8Args Args(const Case& c, const Data& d) {
  ConvS8Args args{};
  args.batch = c.batch;
  args.height = c.height;
  args.width = c.width;
  args.x = d.x.data();
  args.x_as = c.x_as;
  args.packed = d.packed.data();
  args.packed_bytes = d.packed.size() * 8;
  args.bias = c.with_bias ? d.bias.data() : nullptr;
  args.residual = c.with_residual ? d.residual.data() : nullptr;
  args.residual_as = c.residual_as;
  args.activation = c.activation;
  args.y_as = c.y_as;
  return args;
}

// Floats and bytes, with x and y each at the end of readable memory.
void CheckConv(const Case& c, uint64_t seed, const Executor& executor = SerialExecutor()) {
  if (TooManyFailures()) return;
  const Data d(c, seed);
  const std::vector<float> expected = Expected(c, d);
  Fenced x(d.x.size()), y(expected.size() * 4);
  ConvS8Args args = Args(c, d);
  args.x = x.Copy(d.x);
  args.y_f32 = y.Place<float>(expected.size());
  ConvS8(args, executor);
  const ConvShape& s = c.shape;
  for (size_t i = 0; i < expected.size(); ++i)
    if (!SameFloat(args.y_f32[i], expected[i])) {
      testing::Fail(__FILE__, __LINE__, "%s: %ld->%ld groups %ld kernel %ld stride %ld: y[%zu] = %g, expected %g",
                    ActiveIsa().c_str(), long(s.in_channels), long(s.out_channels), long(s.groups), long(s.kernel_h),
                    long(s.stride_h), i, double(args.y_f32[i]), double(expected[i]));
      break;
    }
  args.y_f32 = nullptr;
  args.y = y.Place<uint8_t>(expected.size());
  ConvS8(args, executor);
  for (size_t i = 0; i < expected.size(); ++i)
    if (args.y[i] != reference::Requantize(expected[i], c.y_as)) {
      testing::Fail(__FILE__, __LINE__, "%s: %ld->%ld: byte %zu = %d, from %g", ActiveIsa().c_str(),
                    long(s.in_channels), long(s.out_channels), i, args.y[i], double(expected[i]));
      break;
    }
  CHECK(y.FrontIntact());
}

}  // namespace

TEST(MatrixShapesOnEveryIsa) {
  UnderEachIsa([] {
    uint64_t seed = 1;
    for (int64_t in : {1, 3, 4, 17, 64})
      for (int64_t out : {1, 16, 33})
        for (int64_t kernel : {1, 3}) {
          Case c{Shape(in, out, 1, kernel, 1 + seed % 2, kernel / 2), 1 + static_cast<int64_t>(seed % 2), 5, 7};
          c.activation = static_cast<ConvActivation>(seed % 7 < 2 ? seed % 7 : 5 + seed % 2);
          c.with_bias = seed % 3 != 0;
          c.with_residual = seed % 2 == 0;
          c.extreme = seed % 5 == 0;
          CheckConv(c, seed++);
        }
  });
}

TEST(StridesPaddingDilationAndGroups) {
  UnderEachIsa([] {
    CheckConv({Shape(3, 20, 1, 7, 2, 3), 1, 18, 15}, 1);
    CheckConv({Shape(3, 8, 1, 3, 2, 0), 2, 9, 11}, 2);
    CheckConv({Shape(6, 8, 2, 3, 1, 1), 1, 6, 5}, 3);
    CheckConv({Shape(8, 8, 4, 3, 1, 2, 2), 1, 7, 9}, 4);
    CheckConv({Shape(5, 6, 1, 3, 1, 4, 3), 1, 6, 6}, 5);
    CheckConv({{4, 5, 1, 1, 5, 1, 2, 1, 1, 0, 1, 0, 3}, 2, 1, 13}, 6);  // one dimension, uneven padding
    CheckConv({{4, 4, 4, 3, 2, 2, 1, 1, 2, 0, 1, 1, 0}, 1, 8, 7}, 7);
    CheckConv({Shape(64, 130, 1, 1, 1, 0), 1, 1, 1}, 8);  // a linear layer
  });
}

TEST(DepthwiseOnEveryIsa) {
  UnderEachIsa([] {
    uint64_t seed = 1;
    for (int64_t channels : {2, 16, 64, 65, 96, 144})
      for (int64_t kernel : {2, 3, 5, 7})
        for (int64_t stride : {1, 2}) {
          Case c{Shape(channels, channels, channels, kernel, stride, kernel / 2, 1 + seed % 3 / 2), 2, 8,
                 7 + static_cast<int64_t>(seed % 40)};
          if (c.shape.OutHeight(c.height) < 1 || c.shape.OutWidth(c.width) < 1) continue;
          c.activation = ConvActivation::kRelu6;
          c.with_residual = seed % 4 == 0;
          c.extreme = seed % 5 == 0;
          CheckConv(c, seed++);
        }
  });
}

TEST(SlowActivationsGoThroughTheirKernels) {
  UnderEachIsa([] {
    Case c{Shape(8, 18, 1, 3, 1, 1), 1, 5, 5};
    c.activation = ConvActivation::kSilu;
    c.with_residual = true;
    CheckConv(c, 1);
  });
}

TEST(ThreadsChangeNothing) {
  SetPoolThreads(3);
  for (const Case& c : {Case{Shape(32, 64, 1, 3, 1, 1), 1, 24, 24}, Case{Shape(256, 512, 1, 3, 1, 1), 1, 5, 5},
                        Case{Shape(96, 96, 96, 3, 2, 1), 2, 40, 40}, Case{Shape(64, 64, 8, 3, 1, 1), 1, 20, 20}})
    CheckConv(c, 9, PoolExecutor());
  SetPoolThreads(0);
}

TEST(UnpackGivesBackTheWeight) {
  UnderEachIsa([] {
    for (const ConvShape& s : {Shape(5, 7, 1, 3, 1, 1), Shape(70, 70, 70, 5, 1, 2), Shape(8, 12, 4, 3, 1, 1)}) {
      const Data d({s, 1, 9, 9}, 3);
      std::vector<int8_t> w(d.w.size());
      std::vector<float> scale(d.scale.size());
      UnpackConvS8(d.packed.data(), d.packed.size() * 8, w.data(), scale.data());
      CHECK(w == d.w && scale == d.scale);
      CHECK(ShapeOfPackedConvS8(d.packed.data(), d.packed.size() * 8).depth() == s.depth());
    }
  });
}

TEST(PictureWithNanIsNan) {
  Case c{Shape(4, 4, 1, 1, 1, 0), 1, 2, 2};
  c.x_as.scale = std::numeric_limits<float>::quiet_NaN();
  c.activation = ConvActivation::kRelu6;
  const Data d(c, 1);
  std::vector<float> y(16);
  ConvS8Args args = Args(c, d);
  args.y_f32 = y.data();
  ConvS8(args, SerialExecutor());
  for (float v : y) CHECK(std::isnan(v));
}

TEST(BadBlocksAndArgumentsAreErrors) {
  const Case c{Shape(4, 4, 1, 3, 1, 1), 1, 4, 4};
  Data d(c, 1);
  std::vector<float> y(64);
  ConvS8Args good = Args(c, d);
  good.y_f32 = y.data();
  const auto error = [&](ConvS8Args args) { return ErrorOf([&] { ConvS8(args, SerialExecutor()); }); };
  CHECK(error(good).empty());
  ConvS8Args bad = good;
  bad.packed_bytes -= 64;
  CHECK(Holds(error(bad), "header says"));
  bad = good;
  bad.y = reinterpret_cast<uint8_t*>(y.data());
  CHECK(Holds(error(bad), "exactly one"));
  bad = good;
  bad.x_as.scale = 0.0f;
  CHECK(Holds(error(bad), "a scale is"));
  bad = good;
  bad.activation = static_cast<ConvActivation>(7);
  CHECK(Holds(error(bad), "codes are 0 to 6"));
  bad = good;
  bad.height = 0;
  CHECK(Holds(error(bad), "an input of"));
  ConvShape shape = c.shape;
  shape.groups = 3;
  CHECK(Holds(ErrorOf([&] { PackedBytesConvS8(shape); }), "does not divide"));
  d.w[0] = -128;
  CHECK(Holds(ErrorOf([&] { PackConvS8(c.shape, d.w.data(), d.scale.data(), d.packed.data(), d.packed.size() * 8); }),
              "-128"));
  d.packed[0] ^= 1;
  CHECK(Holds(error(good), "are not one"));
}

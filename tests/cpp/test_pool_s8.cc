#include <cmath>

#include "check.h"
#include "data.h"
#include "kernels/reference/conv_s8_ref.h"
#include "linear_run.h"
#include "tersor/conv_s8.h"

namespace {

using namespace tersor;
using testing::ErrorOf;
using testing::Holds;
using testing::Random;
using testing::UnderEachIsa;

std::vector<uint8_t> Bytes(int64_t count, Random& random) {
  std::vector<uint8_t> values(static_cast<size_t>(count));
  for (uint8_t& v : values) v = static_cast<uint8_t>(random.Int(0, 255));
  return values;
}

void CheckPool(Pooling pooling, int64_t channels, int64_t height, int64_t width, int64_t kernel, int64_t stride,
               int64_t pad) {
  Random random(static_cast<uint64_t>(channels + kernel));
  const int64_t batch = 2;
  const std::vector<uint8_t> x = Bytes(batch * height * width * channels, random);
  PoolS8Args args{};
  args.batch = batch;
  args.height = height;
  args.width = width;
  args.window = {channels, channels, channels, kernel, kernel, stride, stride, 1, 1, pad, pad, pad, pad};
  args.pooling = pooling;
  args.x = x.data();
  args.x_as = {0.03f, 50};
  args.y_as = {0.02f, 60};
  const int64_t out_h = args.window.OutHeight(height), out_w = args.window.OutWidth(width);
  std::vector<uint8_t> y(static_cast<size_t>(batch * out_h * out_w * channels));
  args.y = y.data();
  PoolS8(args, PoolExecutor());
  size_t i = 0;
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t oy = 0; oy < out_h; ++oy)
      for (int64_t ox = 0; ox < out_w; ++ox)
        for (int64_t c = 0; c < channels; ++c, ++i) {
          std::vector<uint8_t> inside;
          for (int64_t iy = oy * stride - pad; iy < oy * stride - pad + kernel; ++iy)
            for (int64_t ix = ox * stride - pad; ix < ox * stride - pad + kernel; ++ix)
              if (iy >= 0 && iy < height && ix >= 0 && ix < width)
                inside.push_back(x[static_cast<size_t>(((b * height + iy) * width + ix) * channels + c)]);
          const int expected = reference::PoolOne(pooling, inside, kernel * kernel, args.x_as, args.y_as);
          CHECK_OR(y[i] == expected, "%s: pooling %d: y[%zu] = %d, expected %d", ActiveIsa().c_str(),
                   static_cast<int>(pooling), i, y[i], expected);
        }
}

}  // namespace

TEST(PoolingByTheDefinition) {
  UnderEachIsa([] {
    for (Pooling pooling : {Pooling::kMax, Pooling::kAverage, Pooling::kAverageOfInside})
      for (int64_t channels : {1, 17, 64, 100}) {
        CheckPool(pooling, channels, 9, 7, 3, 2, 1);
        CheckPool(pooling, channels, 6, 6, 2, 2, 0);
        CheckPool(pooling, channels, 7, 7, 7, 1, 0);  // global
      }
    CheckPool(Pooling::kMax, 64, 40, 40, 3, 1, 1);  // above the size from which threads share
  });
}

TEST(AdditionByTheDefinition) {
  UnderEachIsa([] {
    Random random(4);
    for (int64_t count : {1, 255, 256, 257, 1000}) {
      const std::vector<uint8_t> a = Bytes(count, random), b = Bytes(count, random);
      std::vector<uint8_t> y(a.size());
      std::vector<float> y_f32(a.size());
      for (ConvActivation activation : {ConvActivation::kNone, ConvActivation::kRelu, ConvActivation::kHardSwish})
        for (bool two : {true, false}) {
          AddS8Args args{count,   a.data(), {0.02f, 100}, two ? b.data() : nullptr, {0.05f, 3}, activation,
                         nullptr, y.data(), {0.06f, 20}};
          AddS8(args, PoolExecutor());
          args.y = nullptr;
          args.y_f32 = y_f32.data();
          AddS8(args, PoolExecutor());
          for (size_t i = 0; i < a.size(); ++i) {
            float v = reference::Value(a[i], args.a_as) + 0.0f;
            if (two) v += reference::Value(b[i], args.b_as);
            v = reference::ConvActivate(activation, v);
            CHECK(y[i] == reference::Requantize(v, args.y_as));
            CHECK(testing::SameFloat(y_f32[i], v));
          }
        }
    }
  });
}

TEST(PicturesAreQuantisedByTheirOwnRangeOrAGivenOne) {
  UnderEachIsa([] {
    Random random(5);
    for (int64_t channels : {1, 3, 5})
      for (bool channels_last : {true, false})
        for (float x_scale : {0.0f, 0.013f}) {
          const int64_t height = 13, width = 11, pixels = height * width, count = pixels * channels;
          std::vector<float> x(static_cast<size_t>(3 * count));
          for (float& v : x) v = random.Uniform(-2.0f, 3.0f);
          x[static_cast<size_t>(count + 5)] = INFINITY;
          std::vector<uint8_t> q(x.size());
          Quantized as[3];
          QuantizeImages({3, channels, height, width, x.data(), channels_last, q.data(), x_scale, 77, as},
                         PoolExecutor());
          CHECK(std::isnan(as[1].scale));
          for (int64_t image : {0, 2}) {
            const float* from = x.data() + image * count;
            float lo = 0, hi = 0;
            for (int64_t i = 0; i < count; ++i) lo = std::fmin(lo, from[i]), hi = std::fmax(hi, from[i]);
            const reference::RowQuantization row = reference::ChooseRow(lo, hi);
            CHECK(as[image].scale == (x_scale > 0 ? x_scale : row.scale));
            CHECK(as[image].zero_point == (x_scale > 0 ? 77 : row.zero_point));
            for (int64_t p = 0; p < pixels; ++p)
              for (int64_t c = 0; c < channels; ++c) {
                const float v = from[channels_last ? p * channels + c : c * pixels + p];
                CHECK(q[static_cast<size_t>(image * count + p * channels + c)] == reference::Requantize(v, as[image]));
              }
          }
        }
  });
}

TEST(WrongPoolsAreErrors) {
  uint8_t q[16] = {};
  PoolS8Args args{1, 2, 2, {4, 4, 4, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0}, Pooling::kMax, q, {1.0f, 0}, q, {1.0f, 0}};
  args.window.pad_top = 2;
  CHECK(Holds(ErrorOf([&] { PoolS8(args, SerialExecutor()); }), "as large as the window"));
  args.window.pad_top = 0;
  args.window.groups = 2;
  CHECK(Holds(ErrorOf([&] { PoolS8(args, SerialExecutor()); }), "as many groups"));
}

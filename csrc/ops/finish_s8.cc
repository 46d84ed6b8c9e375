#include "ops/finish_s8.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <string>

namespace tersor {

void CheckQuantized(const char* op, const char* name, const Quantized& as) {
  if (!(as.scale > 0.0f) || !std::isnormal(as.scale) || as.zero_point < 0 || as.zero_point > 255)
    throw Error(std::string(op) + ": " + name + ": scale=" + std::to_string(as.scale) +
                ", zero_point=" + std::to_string(as.zero_point) +
                "; a scale is a positive normal number and a zero point lies in [0, 255]");
}

void CheckConvActivation(const char* op, ConvActivation activation) {
  const int32_t code = static_cast<int32_t>(activation);
  if (code < 0 || code >= kConvActivationCount)
    throw Error(std::string(op) + ": unknown activation code " + std::to_string(code) + "; codes are 0 to " +
                std::to_string(kConvActivationCount - 1));
}

Finisher::Finisher(const Selection& kernels, const FinishOutput& output, int64_t channels, Scratch& scratch)
    : kernels_(kernels), output_(output) {
  const size_t count = static_cast<size_t>(channels);
  offset = scratch.Take<int32_t>(count);
  scale = scratch.Take<float>(count);
  bias = scratch.Take<float>(count);
  row_ = scratch.Take<float>(count);
  const ConvActivation act = output.activation;
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  slow_ = act == ConvActivation::kGelu || act == ConvActivation::kGeluTanh || act == ConvActivation::kSilu;
  low_ = act == ConvActivation::kRelu || act == ConvActivation::kRelu6 ? 0.0f : -kInfinity;
  high_ = act == ConvActivation::kRelu6 ? 6.0f : kInfinity;
}

size_t Finisher::ScratchBytes(int64_t channels) { return 4 * Scratch::Padded<float>(static_cast<size_t>(channels)); }

FinishS8Args Finisher::Args(int64_t pixel, int64_t channel, int64_t constant) const {
  const int64_t at = pixel * output_.channels + channel;
  FinishS8Args g{};
  g.offset = offset + constant;
  g.scale = scale + constant;
  g.bias = bias + constant;
  g.residual = output_.residual != nullptr ? output_.residual + at : nullptr;
  g.ldr = g.ldy = output_.channels;
  g.residual_scale = output_.residual_as.scale;
  g.residual_zero = output_.residual_as.zero_point;
  g.low = low_;
  g.high = high_;
  g.hard_swish = output_.activation == ConvActivation::kHardSwish;
  if (output_.y_f32 != nullptr) {
    g.y_f32 = output_.y_f32 + at;
  } else {
    g.y = output_.y + at;
    g.inv_scale = 1.0f / output_.y_as.scale;
    g.zero = output_.y_as.zero_point;
  }
  return g;
}

bool Finisher::ClampsBytes(const FinishOutput& output) {
  const ConvActivation act = output.activation;
  return output.y != nullptr &&
         (act == ConvActivation::kNone || act == ConvActivation::kRelu || act == ConvActivation::kRelu6);
}

void Finisher::Run(const int32_t* acc, int64_t ld_acc, int32_t pixels, int32_t channels, int64_t pixel, int64_t channel,
                   int64_t constant) const {
  FinishS8Args g = Args(pixel, channel, constant);
  g.m = pixels;
  g.n = channels;
  g.acc = acc;
  g.ld_acc = ld_acc;
  if (slow_)
    RunSlowly(g);
  else
    kernels_.conv_s8->finish(g);
}

void Finisher::RunSlowly(FinishS8Args& g) const {
  const Activation activation = static_cast<Activation>(output_.activation);
  const int32_t rows = g.m;
  float* y_f32 = g.y_f32;
  uint8_t* y = g.y;
  g.m = 1;
  g.y_f32 = row_;
  g.y = nullptr;
  for (int32_t i = 0; i < rows; ++i) {
    kernels_.conv_s8->finish(g);
    kernels_.activation->apply(activation, g.n, row_);
    if (y_f32 != nullptr) {
      std::memcpy(y_f32 + i * g.ldy, row_, static_cast<size_t>(g.n) * sizeof(float));
    } else {
      kernels_.quantize->quantize_row(g.n, row_, g.inv_scale, g.zero, y + i * g.ldy);
    }
    g.acc += g.ld_acc;
    if (g.residual != nullptr) g.residual += g.ldr;
  }
}

}  // namespace tersor

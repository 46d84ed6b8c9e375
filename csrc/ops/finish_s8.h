// From exact sums to the values of a tensor: per-channel constants, residual, activation, bytes or floats.
#pragma once
#include <cstdint>

#include "core/registry.h"
#include "core/scratch.h"
#include "tersor/conv_s8.h"

namespace tersor {

// Throws Error, beginning with the op's name, unless a tensor can have these numbers and this activation exists.
void CheckQuantized(const char* op, const char* name, const Quantized& as);
void CheckConvActivation(const char* op, ConvActivation activation);

struct FinishOutput {
  ConvActivation activation;
  const uint8_t* residual;  // or null
  Quantized residual_as;
  float* y_f32;  // exactly one of the two
  uint8_t* y;
  Quantized y_as;
  int64_t channels;  // row stride of residual and y
};

class Finisher {
 public:
  // The constants of `channels` channels, to be written through these pointers before the first Run.
  Finisher(const Selection& kernels, const FinishOutput& output, int64_t channels, Scratch& scratch);
  static size_t ScratchBytes(int64_t channels);

  int32_t* offset;
  float *scale, *bias;

  // Everything but m, n and acc.
  FinishS8Args Args(int64_t pixel, int64_t channel, int64_t constant) const;
  // Whether the result is bytes, and needs no activation but a clamp.
  static bool ClampsBytes(const FinishOutput& output);
  bool clamps_bytes() const { return ClampsBytes(output_); }
  bool adds() const { return output_.residual != nullptr; }

  // Sums [pixels][channels], row stride ld_acc, of the pixels and channels that begin at (pixel, channel) of y;
  // `constant` is where the constants of `channel` lie.
  void Run(const int32_t* acc, int64_t ld_acc, int32_t pixels, int32_t channels, int64_t pixel, int64_t channel,
           int64_t constant) const;

 private:
  void RunSlowly(FinishS8Args& g) const;  // activations that are functions of their own

  const Selection& kernels_;
  FinishOutput output_;
  float low_, high_;
  bool slow_;
  float* row_;
};

}  // namespace tersor

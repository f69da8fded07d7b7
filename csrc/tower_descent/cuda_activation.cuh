// The activations of a tower and their derivatives on one value, in float32.
#pragma once
#include "core/activation.h"
#include "core/device.cuh"

namespace semobridge {

constexpr float kSqrtHalf = 0.707106781f, kInverseSqrt2Pi = 0.398942280f;

// Where σ is 0 or 1 to the last bit, ds·h may be infinite: 0·∞ would be NaN.
__device__ __forceinline__ float sigmoid_slope(float h, float s, float ds) {
  const float sigma = 1.0f / (1.0f + expf(-s));
  const float bend = sigma * (1.0f - sigma);
  return bend == 0.0f ? sigma + 0.0f * h : sigma + h * bend * ds;
}

template <Activation kKind>
__device__ __forceinline__ float activated(float h) {
  if constexpr (kKind == Activation::kGelu) {
    return h * (0.5f * erfcf(-h * kSqrtHalf));  // erfc keeps the digits of the far tail
  } else if constexpr (kKind == Activation::kGeluTanh) {
    return h / (1.0f + expf(-1.59576912f * (h + 0.044715f * h * h * h)));
  } else {
    return h / (1.0f + expf(-1.702f * h));
  }
}

template <Activation kKind>
__device__ __forceinline__ float activation_slope(float h) {
  if constexpr (kKind == Activation::kGelu) {
    return 0.5f * erfcf(-h * kSqrtHalf) + h * kInverseSqrt2Pi * expf(-0.5f * h * h);
  } else if constexpr (kKind == Activation::kGeluTanh) {
    const float s = 1.59576912f * (h + 0.044715f * h * h * h);
    return sigmoid_slope(h, s, 1.59576912f * (1.0f + 0.134145f * h * h));
  } else {
    return sigmoid_slope(h, 1.702f * h, 1.702f);
  }
}

}  // namespace semobridge

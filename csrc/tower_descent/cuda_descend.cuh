// The two ends of a descent step (cuda_descend.h). cosine_loss: one warp per sample. adamw: one
// thread per element of v, which also gathers the gradient from the slots that v feeds and writes
// their next input, so that a step has no copies.
#pragma once
#include "core/adamw.h"
#include "core/device.cuh"
#include "tower_descent/cuda_descend.h"

namespace semobridge {

constexpr int kLossWarps = 4;  // samples of a block

inline AdamwFactors<float> factors_of(const AdamwCudaArgs& a) {
  return adamw_factors<float>(1 - a.lr * a.weight_decay, a.beta1, a.beta2, a.eps);
}

template <class T>
__device__ __forceinline__ void cosine_loss_rows(int64_t block, const T* features,
                                                 int64_t features_stride, const float* targets,
                                                 int64_t targets_stride, float grad_scale,
                                                 const int64_t* step, int64_t* step_now,
                                                 float* losses, T* grad, int64_t grad_stride,
                                                 float* unit, int64_t samples, int64_t width) {
  const int lane = threadIdx.x % kWarp;
  const int64_t s = block * kLossWarps + threadIdx.x / kWarp;
  if (s >= samples) return;
  const T* t = features + s * features_stride;
  const float* f = targets + s * targets_stride;
  float squares = 0, product = 0, target_squares = 0;
  for (int64_t i = lane; i < width; i += kWarp) {
    const float value = widen(t[i]);
    squares += value * value;
    product += value * f[i];
    target_squares += f[i] * f[i];
  }
  squares = warp_sum(squares);
  product = warp_sum(product);
  target_squares = warp_sum(target_squares);
  const float inverse = squares == 0 ? 0.0f : 1.0f / sqrtf(squares);
  const float cosine = product * inverse;
  const float factor = grad_scale * inverse;
  for (int64_t i = lane; i < width; i += kWarp) {
    const float hat = widen(t[i]) * inverse;
    if (unit != nullptr) unit[s * width + i] = hat;
    narrow(target_squares == 0 ? 0.0f : (cosine * hat - f[i]) * factor, grad + s * grad_stride + i);
  }
  if (lane != 0) return;
  losses[*step * samples + s] = 1.0f - cosine;
  if (s == 0) *step_now = *step;
}

template <class T>
__device__ __forceinline__ void adamw_element(int64_t at, const T* grad_x, int64_t grad_stride,
                                              const int32_t* source, int64_t slots, float* tokens,
                                              float* exp_avg, float* exp_avg_sq, const float* rates,
                                              const float* corrections, const int64_t* step_now,
                                              int64_t* step, AdamwFactors<float> f,
                                              float grad_factor, const float* base,
                                              int64_t base_samples, T* x, int64_t x_stride,
                                              int64_t samples, int64_t vectors, int64_t width) {
  if (at >= samples * vectors * width) return;
  const int64_t i = at % width, r = at / width % vectors, s = at / width / vectors;
  float g = 0;
  for (int64_t slot = 0; slot < slots; ++slot) {
    if (source[slot] == r) g += widen(grad_x[(slot * samples + s) * grad_stride + i]);
  }
  g *= grad_factor;
  const int64_t now = *step_now;
  f.rate = rates[now];
  f.correction = corrections[now];
  const float v = adamw_value(f, g, tokens[at], exp_avg[at], exp_avg_sq[at]);
  tokens[at] = v;
  for (int64_t slot = 0; slot < slots && x != nullptr; ++slot) {
    if (source[slot] != r) continue;
    const int64_t constant = slot * base_samples + (base_samples == 1 ? 0 : s);
    narrow(base[constant * width + i] + v, x + (slot * samples + s) * x_stride + i);
  }
  if (at == 0) *step = now + 1;
}

}  // namespace semobridge

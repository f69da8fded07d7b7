// The norm of a few rows and its gradient (cuda_layer_norm.h), one warp per row: widths are 192 to
// 1280, so a row is a few vectors per lane and the second pass reads it from L1.
#pragma once
#include "core/device.cuh"
#include "tower_descent/cuda_layer_norm.h"

namespace semobridge {

constexpr int kNormWarps = 4;  // rows of a block

template <class T, int kStep>
__device__ __forceinline__ void layer_norm_rows(int64_t block, const T* x, int64_t x_stride,
                                                const T* delta, int64_t delta_stride, T* total,
                                                int64_t total_stride, const float* weight,
                                                const float* bias, float eps, T* y,
                                                int64_t y_stride, float* mean, float* rstd,
                                                int64_t rows, int64_t width) {
  const int64_t row = block * kNormWarps + threadIdx.x / kWarp;
  if (row >= rows) return;
  const int64_t begin = threadIdx.x % kWarp * kStep;
  const T* source = x + row * x_stride;
  float sum = 0, value[kStep];
  if (delta != nullptr) {
    float other[kStep];
    for (int64_t i = begin; i < width; i += kWarp * kStep) {
      load(source + i, value);
      load(delta + row * delta_stride + i, other);
#pragma unroll
      for (int j = 0; j < kStep; ++j) value[j] += other[j];
      store(value, total + row * total_stride + i);
    }
    source = total + row * total_stride;  // each lane reads what it wrote, as it was rounded
  }
  for (int64_t i = begin; i < width; i += kWarp * kStep) {
    load(source + i, value);
#pragma unroll
    for (int j = 0; j < kStep; ++j) sum += value[j];
  }
  const float m = warp_sum(sum) / static_cast<float>(width);
  float squares = 0;
  for (int64_t i = begin; i < width; i += kWarp * kStep) {
    load(source + i, value);
#pragma unroll
    for (int j = 0; j < kStep; ++j) squares += (value[j] - m) * (value[j] - m);
  }
  const float r = 1.0f / sqrtf(warp_sum(squares) / static_cast<float>(width) + eps);
  float w[kStep], b[kStep];
  for (int64_t i = begin; i < width; i += kWarp * kStep) {
    load(source + i, value);
    load(weight + i, w);
    load(bias + i, b);
#pragma unroll
    for (int j = 0; j < kStep; ++j) value[j] = (value[j] - m) * r * w[j] + b[j];
    store(value, y + row * y_stride + i);
  }
  if (begin == 0) {
    mean[row] = m;
    rstd[row] = r;
  }
}

template <class T, int kStep>
__device__ __forceinline__ void layer_norm_grad_rows(
    int64_t block, const T* x, int64_t x_stride, const T* grad_y, int64_t grad_y_stride,
    const float* weight, const float* mean, const float* rstd, const T* residual,
    int64_t residual_stride, T* grad_x, int64_t grad_x_stride, int64_t rows, int64_t width) {
  const int64_t row = block * kNormWarps + threadIdx.x / kWarp;
  if (row >= rows) return;
  const int64_t begin = threadIdx.x % kWarp * kStep;
  const T* source = x + row * x_stride;
  const T* upstream = grad_y + row * grad_y_stride;
  const float m = mean[row], r = rstd[row];
  float sum_u = 0, sum_ux = 0, value[kStep], u[kStep], w[kStep];
  for (int64_t i = begin; i < width; i += kWarp * kStep) {
    load(source + i, value);
    load(upstream + i, u);
    load(weight + i, w);
#pragma unroll
    for (int j = 0; j < kStep; ++j) {
      sum_u += u[j] * w[j];
      sum_ux += u[j] * w[j] * ((value[j] - m) * r);
    }
  }
  const float mean_u = warp_sum(sum_u) / static_cast<float>(width);
  const float mean_ux = warp_sum(sum_ux) / static_cast<float>(width);
  for (int64_t i = begin; i < width; i += kWarp * kStep) {
    load(source + i, value);
    load(upstream + i, u);
    load(weight + i, w);
    float g[kStep] = {};
    if (residual != nullptr) load(residual + row * residual_stride + i, g);
#pragma unroll
    for (int j = 0; j < kStep; ++j) {
      g[j] += (u[j] * w[j] - mean_u - (value[j] - m) * r * mean_ux) * r;
    }
    store(g, grad_x + row * grad_x_stride + i);
  }
}

}  // namespace semobridge

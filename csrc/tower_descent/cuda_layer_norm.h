// layer_norm (CUDA): the norm of a frozen tower and the gradient of its input.
//
//   x ← x + delta                                where a delta is given: the residual sum
//   y = (x − mean)·rstd·weight + bias            rstd = 1/sqrt(variance + eps), biased variance
//   grad_x = rstd·(u − mean(u) − x̂·mean(u·x̂)) (+ residual)      u = grad_y·weight
//
// float32 arithmetic, two passes for the variance; storage float32, float16 or bfloat16.
#pragma once
#include "core/view.h"

namespace semobridge {

struct LayerNormCudaArgs {
  ConstMatrix x;                  // [N, T]
  ConstMatrix delta;              // [N, T], dtype of x; data == nullptr: none
  Matrix total;                   // [N, T], dtype of x: x + delta, rounded; written with a delta
  const float* weight = nullptr;  // [T]
  const float* bias = nullptr;    // [T]
  double eps = 1e-5;
  Matrix y;               // [N, T], dtype of x
  float* mean = nullptr;  // [N] written
  float* rstd = nullptr;  // [N] written
};
void layer_norm_cuda(const LayerNormCudaArgs& args, int device, void* stream);

struct LayerNormGradCudaArgs {
  ConstMatrix x;                  // [N, T]
  ConstMatrix grad_y;             // [N, T], dtype of x
  const float* weight = nullptr;  // [T]
  const float* mean = nullptr;    // [N]
  const float* rstd = nullptr;    // [N]
  ConstMatrix residual;           // [N, T], dtype of x; data == nullptr: none
  Matrix grad_x;                  // [N, T], dtype of x; may be the residual itself
};
void layer_norm_grad_cuda(const LayerNormGradCudaArgs& args, int device, void* stream);

}  // namespace semobridge

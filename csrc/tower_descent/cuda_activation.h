// activate (CUDA): the activation behind a product made elsewhere, and its gradient.
//
//   y = act(x)        grad ← grad·act′(x)        (kinds: see core/activation.h)
//
// float32 arithmetic; storage float32, float16 or bfloat16.
#pragma once
#include "core/activation.h"
#include "core/view.h"

namespace semobridge {

struct ActivateCudaArgs {
  Activation kind = Activation::kGelu;
  ConstMatrix x;  // [N, M]
  Matrix y;       // [N, M], dtype of x; may be x itself
};
void activate_cuda(const ActivateCudaArgs& args, int device, void* stream);

struct ActivateGradCudaArgs {
  Activation kind = Activation::kGelu;
  ConstMatrix x;  // [N, M]
  Matrix grad;    // [N, M], dtype of x; in place
};
void activate_grad_cuda(const ActivateGradCudaArgs& args, int device, void* stream);

}  // namespace semobridge

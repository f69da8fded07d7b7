// activate (CUDA): the bias, the activation and its derivative behind a product made elsewhere.
//
//   h = x + b       y = act(h)       slope = act′(h)        (kinds: see
//   core/activation.h)
//
// and the backward pass's  x ← x·slope. float32 arithmetic; storage float32, float16 or bfloat16.
#pragma once
#include "core/activation.h"
#include "core/view.h"

namespace semobridge {

struct ActivateCudaArgs {
  Activation kind = Activation::kGelu;
  ConstMatrix x;                // [N, M]
  const float* bias = nullptr;  // [M] or null
  Matrix y;                     // [N, M], dtype of x; may be x itself
  Matrix slope;                 // [N, M], dtype of x; may be x itself; data == nullptr: not wanted
};
void activate_cuda(const ActivateCudaArgs& args, int device, void* stream);

}  // namespace semobridge

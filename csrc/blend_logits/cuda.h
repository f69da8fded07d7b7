// blend_logits (CUDA): the epilogue of blend_logits/blend_logits.h behind one product made
// elsewhere.
//
//   z = f·[tᵀ | F̂ᵀ | M F̄ᵀ | R]        logits and their argmax as in blend_logits/blend_logits.h
//
// A warp for a row, a block for one of 4096 columns and more; vectors where all rows are aligned,
// by which a norm's sum has one of two orders. The number of rows decides nothing. Equal logits:
// the lower class wins; NaN never does.
#pragma once
#include "core/view.h"

namespace semobridge {

struct BlendLogitsCudaArgs {
  ConstMatrix x;                   // [N, D] f, float32, float16 or bfloat16
  ConstMatrix z;                   // [N, 3·C + r] float32
  int64_t classes = 0, rank = 0;   // C, r; r == 0: z3 is divided by ‖f‖
  const float* weights = nullptr;  // [C] or null
  double alpha = 1, beta = 1, gamma = 1;
  double lambda[3] = {1, 1, 1};
  int64_t* labels = nullptr;  // [N]; may be null
  float* logits = nullptr;    // [N, C]; may be null
};
void blend_logits_cuda(const BlendLogitsCudaArgs& args, int device, void* stream);

}  // namespace semobridge

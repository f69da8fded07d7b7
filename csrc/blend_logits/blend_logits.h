// blend_logits: SeMoBridge's three blocks of cosines from one product, and what a caller wants of
// them.
//
//   z1 = f·tᵀ/‖f‖     z2 = f·F̂ᵀ/‖f‖     z3 = f·(M F̄ᵀ)/‖f R‖,  M = W⁺W,  R Rᵀ = M Mᵀ
//   logit_c = λ1·exp(−α(1−z1)) + w_c·[λ2·exp(−β(1−z2)) + λ3·exp(−γ(1−z3))]
//
// The right operands lie side by side, so that a block of rows is packed once; the logits of a
// panel of classes are made while its tile is in cache. `labels` alone never writes an [N, C]
// array.
//
// Accumulation and exponentials are float32 (float64 for float64 rows). A row's result depends
// neither on its batch nor on the threads. Equal logits: the lower class wins. A zero row has z =
// 0.
#pragma once
#include "core/view.h"

namespace semobridge {

struct BlendLogitsArgs {
  ConstMatrix x;        // [N, D]
  PackedMatrix right;   // [D, 3·Cp + Rp]: per panel of classes its text, bridged and raw panel; R
  int64_t classes = 0;  // C; Cp is C rounded up to kPanel
  bool bridged = true;  // false: no R, z3 is divided by ‖f‖
  const void* weights = nullptr;  // [Cp] w of the compute type; null: 1
  double alpha = 1, beta = 1, gamma = 1;
  double lambda[3] = {1, 1, 1};
  int64_t* labels = nullptr;                      // [N] argmax; may be null
  void* logits = nullptr;                         // [N, C] compute type; may be null
  void* blocks[3] = {nullptr, nullptr, nullptr};  // z1, z2, z3 [N, C] compute type; or all null
  int threads = 1;
};

void blend_logits(const BlendLogitsArgs& args);

}  // namespace semobridge

// The two ends of a descent step (CUDA), one launch each; between them lies the tower's backward.
//
//   cosine_loss   t̂ = t/‖t‖   loss = 1 − t̂·f   grad_t = −grad_scale·(f − (t̂·f)·t̂)/‖t‖
//   adamw         v ← AdamW(v, grad_factor·Σ over the slots of v of grad_x)
//                 x = base + v for those slots
//
// Steps are counted on the device, so that one captured graph serves every step: cosine_loss reads
// `step` and hands it on in `step_now`, adamw reads that and writes `step` anew. No kernel reads
// what it writes. `rates` and `corrections` hold lr/(1 − β1^(i+1)) and sqrt(1 − β2^(i+1)) of step
// i.
#pragma once
#include "core/view.h"

namespace semobridge {

struct CosineLossCudaArgs {
  ConstMatrix features;  // [S, D] t, float32, float16 or bfloat16
  ConstMatrix targets;   // [S, D] unit rows, float32 (a zero row has no gradient)
  double grad_scale = 1;
  const int64_t* step = nullptr;  // [1]
  int64_t* step_now = nullptr;    // [1] written
  float* losses = nullptr;        // [steps, S], row `step` is written
  Matrix grad;                    // [S, D], dtype of features
  float* unit = nullptr;          // [S, D] t̂; may be null
};
void cosine_loss_cuda(const CosineLossCudaArgs& args, int device, void* stream);

struct AdamwCudaArgs {
  int64_t samples = 0, vectors = 0, width = 0;  // S, R, T
  int64_t slots = 0;                            // n
  const int32_t* source = nullptr;              // [n] which vector a slot adds, or −1
  ConstMatrix grad_x;                           // [n·S, T]
  float* tokens = nullptr;                      // [S, R, T] v, in place
  float* exp_avg = nullptr;                     // [S, R, T] in place
  float* exp_avg_sq = nullptr;                  // [S, R, T] in place
  const float* rates = nullptr;                 // [steps]
  const float* corrections = nullptr;           // [steps]
  const int64_t* step_now = nullptr;            // [1]
  int64_t* step = nullptr;                      // [1] written: step_now + 1
  double lr = 0.02, beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weight_decay = 0.01;
  double grad_factor = 1;       // undoes a scale that kept small gradients in float16's range
  const float* base = nullptr;  // [n, T], or [n, S, T]
  int64_t base_samples = 1;     // 1 or S
  Matrix x;                     // [n·S, T], rows of slots with a vector written; null: not wanted
};
void adamw_cuda(const AdamwCudaArgs& args, int device, void* stream);

}  // namespace semobridge

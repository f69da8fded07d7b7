// symmetric_kl: half the Kullback-Leibler divergence of two rows of logits, both ways.
//
//   p = softmax(a/t)     q = softmax(b/t)     d = log p − log q
//   rows[n] = ½·(KL(p‖q) + KL(q‖p)) = ½·Σ_k (p_k − q_k)·d_k
//   grad_a  = g_n/(2t)·(p·(d − KL(p‖q)) + p − q)     grad_b: the same with a and b exchanged
//
// A row is read from memory once; no softmax is written. Sums are those of the compute type
// (float64 for float64 logits, else float32), in one fixed order per row: a row's result depends
// neither on the batch nor on the threads. NaN or an infinite logit makes its own row NaN.
#pragma once
#include "core/view.h"

namespace semobridge {

// Per row: the largest logit of a over t, log Σ exp of what is left, the same two of b, KL(p‖q),
// KL(q‖p).
constexpr int64_t kSymmetricKlStats = 6;

struct SymmetricKlArgs {
  ConstMatrix a, b;  // [N, K], one dtype
  double temperature = 1;
  void* rows = nullptr;   // [N], compute type
  void* stats = nullptr;  // [N, 6], compute type
  int threads = 1;
};
void symmetric_kl(const SymmetricKlArgs& args);

struct SymmetricKlBwdArgs {
  ConstMatrix a, b;  // [N, K], one dtype
  double temperature = 1;
  const void* grad = nullptr;   // [N] gradient of rows, compute type
  const void* stats = nullptr;  // [N, 6] of the forward pass
  Matrix grad_a, grad_b;        // [N, K] in the dtype of a; null data: not wanted
  int threads = 1;
};
void symmetric_kl_bwd(const SymmetricKlBwdArgs& args);

// CUDA: float32, float16 and bfloat16, computed in float32.
void symmetric_kl_cuda(const SymmetricKlArgs& args, int device, void* stream);
void symmetric_kl_bwd_cuda(const SymmetricKlBwdArgs& args, int device, void* stream);

}  // namespace semobridge

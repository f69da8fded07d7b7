// few_attention (CUDA): a few queries over a constant prefix and the sample's own keys.
//
//   p = softmax(q·Kᵀ/√d)    o = p·V        over  [prefix | visible own slots]
//   dp_j = grad_o·v_j    ds = p (dp − Σ p·dp)/√d    grad_q = ds·K    grad_k = dsᵀ·q   grad_v =
//   pᵀ·grad_o
//
// Rows are slot-major ([n, S, ..]), as in tower_descent/tower_descent.h; a head is `width` columns.
// float32 arithmetic; q, k, v and o are float32, float16 or bfloat16. No atomics.
//
// Between forward and backward stands one number a query, the logarithm of its sum. The backward
// pass makes p anew from q·k: it reads q, k and v in any case, so that costs d multiply-adds and no
// byte, where p itself would be written once and read twice.
#pragma once
#include "core/view.h"

namespace semobridge {

constexpr int64_t kAttentionSlots = 64;  // bits of a query's mask

struct AttentionCudaArgs {
  DType dtype = DType::kFloat32;
  int64_t samples = 0, heads = 0, width = 0;   // S, heads, d <= 128
  int64_t slots = 0, queries = 0, prefix = 0;  // n <= kAttentionSlots, slots with a query, P
  const void* qkv = nullptr;                   // [n·S, 3·heads·d], row stride qkv_stride
  int64_t qkv_stride = 0;
  const void* prefix_kv = nullptr;    // [2, P, heads·d], keys then values
  const uint64_t* visible = nullptr;  // [queries] bit j: the query sees slot j
  float* lse = nullptr;               // [S·heads, queries] log Σ exp(q·k/√d)
  void* o = nullptr;                  // [queries·S, heads·d], row stride o_stride
  int64_t o_stride = 0;
};
// Writes lse and o.
void attention_cuda(const AttentionCudaArgs& args, int device, void* stream);

struct AttentionGradCudaArgs {
  AttentionCudaArgs forward;     // lse as written; o is not read
  const void* grad_o = nullptr;  // [queries·S, heads·d], row stride o_stride
  void* grad_qkv = nullptr;      // shape and stride of qkv; all slots written, q of slots past
                                 // `queries` with zeros
};
void attention_grad_cuda(const AttentionGradCudaArgs& args, int device, void* stream);

}  // namespace semobridge

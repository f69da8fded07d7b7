// tree_attention: softmax attention of rows over listed keys, a list for each row, nothing
// gathered.
//
//   o[n, h] = Σ_j p_j · v[a_j, h]     p = softmax_j(q[n, h] · k[a_j, h] / √d)     j < counts[n]
//
// with a = paths[path_of[n]] and d the width of a head. In a prefix tree the list is the way from
// the root to the node: rows of one path share it, each reading its own first entries.
//
// Sums are those of the rows' dtype, in one fixed order per row: a row's result depends neither on
// the other rows nor on the threads. What is not in a row's list is not read, so that NaN elsewhere
// stays there; NaN in the list makes its heads NaN.
#pragma once
#include "core/view.h"

namespace semobridge {

struct TreeAttentionArgs {
  ConstMatrix queries;                // [N, T] float32 or float64
  ConstMatrix keys, values;           // [M, T] of the same dtype
  int64_t heads = 1;                  // divides T
  const int32_t* paths = nullptr;     // [P, L] rows of keys and values
  int64_t num_paths = 0, length = 0;  // P, L
  const int32_t* path_of = nullptr;   // [N] below P
  const int32_t* counts = nullptr;    // [N] 1 .. L
  Matrix out;                         // [N, T] of the same dtype
  int threads = 1;
};
void tree_attention(const TreeAttentionArgs& args);

// Its gradient, from g = ∂L/∂o, with p made again:
//
//   dp_j = g[n, h] · v[a_j, h]     ds_j = p_j (dp_j − Σ_i p_i dp_i) / √d
//   grad_q[n, h] = Σ_j ds_j k[a_j, h]     grad_k[a, h] = Σ_{n, j: a_j = a} ds_j q[n, h]
//   grad_v[a, h] = Σ_{n, j: a_j = a} p_j g[n, h]
//
// Threads share the heads, not the rows: a key's sum runs over the rows in their order, whatever
// their number. Keys in no list get zeros.
struct TreeAttentionBwdArgs {
  ConstMatrix queries;       // [N, T] float32 or float64
  ConstMatrix keys, values;  // [M, T] of the same dtype, as all that follow
  int64_t heads = 1;
  const int32_t* paths = nullptr;  // as above
  int64_t num_paths = 0, length = 0;
  const int32_t* path_of = nullptr;
  const int32_t* counts = nullptr;
  ConstMatrix grad_out;           // [N, T]
  Matrix grad_queries;            // [N, T]
  Matrix grad_keys, grad_values;  // [M, T]
  int threads = 1;
};
void tree_attention_bwd(const TreeAttentionBwdArgs& args);

}  // namespace semobridge

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

}  // namespace semobridge

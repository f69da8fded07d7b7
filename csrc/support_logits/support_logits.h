// support_logits: the cache classifiers' sum over the keys of each class, streamed.
//
//   out[n, c] = Σ over s with label(s) = c of  w_s · exp(β·(⟨q_n, k_s⟩ − 1))
//
// Keys are visited in class order, in chunks of kSupportChunk. The part of a class that lies in one
// chunk is summed in float32 (float64 for float64), key after key; a class that spans chunks is the
// float64 sum of its parts, in order. Neither depends on the threads or on the other queries.
//
// Range (float32): a term is 0 where β(⟨q,k⟩ − 1) < −87.68 and infinite from 88.37 on; unit rows
// with β >= 0 never reach the second. float64: −708.74 and 709.43.
#pragma once
#include "core/view.h"

namespace semobridge {

constexpr int64_t kSupportChunk = 1024;  // keys
constexpr int64_t kSupportBlock = 1024;  // queries: 2 MiB packed at D = 512

struct SupportLogitsArgs {
  ConstMatrix queries;               // [N, D]
  ConstMatrix keys;                  // [S, D]
  const int64_t* order = nullptr;    // [S] keys in class order; null: they lie so
  const int64_t* offsets = nullptr;  // [C + 1] where each class begins in that order
  int64_t num_classes = 0;
  const void* weights = nullptr;  // [S] of the compute type, by key row; may be null
  double beta = 1.0;
  void* out = nullptr;        // [N, C] of the compute type, zero on entry
  void* workspace = nullptr;  // support_logits_workspace(N, S) of the compute type
  int threads = 1;
};

// Compute type: float64 when queries or keys are, else float32.
void support_logits(const SupportLogitsArgs& args);

// Two partial sums for every chunk and query of a block.
constexpr int64_t support_logits_workspace(int64_t n, int64_t s) {
  return 2 * ((s + kSupportChunk - 1) / kSupportChunk) * (n < kSupportBlock ? n : kSupportBlock);
}

// Stable counting sort. Writes order [S] and offsets [C + 1]; returns the position of the first
// label outside 0..C-1, or -1.
int64_t sort_labels(const int64_t* labels, int64_t s, int64_t num_classes, int64_t* order,
                    int64_t* offsets);

}  // namespace semobridge

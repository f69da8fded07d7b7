// topk (CUDA): the k best of scores that come in chunks of gallery rows, in the order of
// topk/topk.h.
//
// filter: a row's chunk is cut into `splits` ranges; one warp keeps the best k of each, sorted, in
// registers, and lets a score in only if it beats the k-th. merge: the warps of one block join a
// row's lists. The order is total, so neither the chunks nor the splits change the result. Rows of
// scores on 16-byte borders are read in vectors.
#pragma once
#include "core/view.h"

namespace semobridge {

constexpr int64_t kTopkCudaMax = 128;  // four list entries per lane

struct TopkFilterCudaArgs {
  ConstMatrix scores;  // [N, G'] float32: gallery rows first .. first + G'
  int64_t first = 0;
  bool fresh = true;  // false: the lists hold earlier chunks
  int64_t k = 0, splits = 1;
  const int64_t* exclude = nullptr;  // [N] or null
  float* best = nullptr;             // [N, splits, k]
  uint32_t* rows = nullptr;          // [N, splits, k]; UINT32_MAX: no entry
};
void topk_filter_cuda(const TopkFilterCudaArgs& args, int device, void* stream);

struct TopkMergeCudaArgs {
  int64_t n = 0, k = 0, splits = 1;
  const float* best = nullptr;     // [N, splits, k]
  const uint32_t* rows = nullptr;  // [N, splits, k]
  float* scores = nullptr;         // [N, k]
  int64_t* indices = nullptr;      // [N, k]
};
void topk_merge_cuda(const TopkMergeCudaArgs& args, int device, void* stream);

}  // namespace semobridge

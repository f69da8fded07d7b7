// topk: for every query the k gallery rows of largest inner product, exactly, streamed.
//
// Order: score descending, equal scores by lower row; a NaN score ranks with −infinity. The order
// is total and scores have one rounding whatever computed them, so the result depends neither on
// the threads nor on the other queries.
#pragma once
#include "core/select.h"
#include "core/view.h"

namespace semobridge {

struct TopkArgs {
  ConstMatrix queries;  // [N, D]
  ConstMatrix gallery;  // [G, D], G < 2^32
  int64_t k = 0;        // <= G, or G - 1 with exclude
  const int64_t* exclude =
      nullptr;                 // [N] gallery row that the query must not get, or -1; may be null
  void* scores = nullptr;      // [N, k] of the compute type
  int64_t* indices = nullptr;  // [N, k]
  void* workspace = nullptr;   // topk_workspace(...) bytes, 64-byte aligned
  int threads = 1;
};

void topk(const TopkArgs& args);

constexpr int64_t kTopkBlock = 1024;            // queries
constexpr int64_t kTopkBytes = 64 * (1 << 20);  // of candidates, unless one query needs more

// Candidates kept per query and thread; above k they wait for the next selection.
constexpr int64_t topk_capacity(int64_t k, int64_t g) { return 2 * k + 64 < g ? 2 * k + 64 : g; }

constexpr int64_t topk_candidate_bytes(DType compute) {
  return compute == DType::kFloat64 ? sizeof(Candidate<double>) : sizeof(Candidate<float>);
}

constexpr int64_t topk_block_rows(int64_t n, int64_t g, int64_t k, DType compute, int threads) {
  const int64_t each = topk_capacity(k, g) * topk_candidate_bytes(compute) * threads;
  int64_t rows = kTopkBytes / each;
  rows = rows < 16 ? 16 : rows > kTopkBlock ? kTopkBlock : rows;
  return rows < n ? rows : n;
}

constexpr int64_t topk_workspace(int64_t n, int64_t g, int64_t k, DType compute, int threads) {
  return topk_block_rows(n, g, k, compute, threads) * topk_capacity(k, g) *
         topk_candidate_bytes(compute) * threads;
}

}  // namespace semobridge

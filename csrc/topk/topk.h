// topk: for every query the k gallery rows of largest inner product, exactly, streamed.
//
// Order: score descending, equal scores by lower row; a NaN score ranks with −infinity. The order
// is total and scores have one rounding whatever computed them, so the result depends neither on
// the threads nor on the other queries.
#pragma once
#include "core/codes.h"
#include "core/select.h"
#include "core/view.h"

namespace semobridge {

struct TopkArgs {
  ConstMatrix queries;  // [N, D]
  ConstMatrix gallery;  // [G, D], G < 2^32
  int64_t k = 0;        // at most the rows that take part, less one with exclude
  const int64_t* exclude =
      nullptr;                  // [N] gallery row that the query must not get, or -1; may be null
  int64_t begin = 0, end = -1;  // gallery rows [begin, end) take part; -1: all
  const bool* allow = nullptr;  // [G] which of them; may be null
  const int64_t* select = nullptr;  // [selected] queries to answer, the others' outputs untouched
  int64_t selected = 0;
  void* scores = nullptr;      // [N, k] of the compute type
  int64_t* indices = nullptr;  // [N, k]
  void* workspace = nullptr;   // topk_workspace(...) bytes, 64-byte aligned
  int threads = 1;
};

void topk(const TopkArgs& args);

// topk_filtered: the same result to the bit, in float32, by way of 8-bit codes. What cannot be
// among the best by the certain bound of its score is never scored (core/codes.h).
struct TopkFilterCounts {
  int64_t scored = 0;        // rows that were scored in float32 at the end, all queries together
  int64_t scored_early = 0;  // ... and before, because too many were left
  int64_t chunks[3] = {};    // chunks of the gallery by one plane, by two, and by float32 alone
  int64_t unfiltered = 0;    // queries that cannot be coded
};

struct TopkFilteredArgs {
  TopkArgs plain;   // workspace: topk_filtered_workspace(...) bytes
  CodedRows coded;  // of the whole gallery; null: rows are quantised on the way
  TopkFilterCounts* counts = nullptr;
};

void topk_filtered(const TopkFilteredArgs& args);

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

// Intervals kept per query and thread: room for those that the bound cannot decide.
constexpr int64_t topk_interval_capacity(int64_t k, int64_t g) {
  return 4 * k + 256 < g ? 4 * k + 256 : g < 2 * k ? 2 * k : g;
}

constexpr int64_t topk_filtered_rows(int64_t n, int64_t g, int64_t k, int threads) {
  const int64_t each = topk_interval_capacity(k, g) * sizeof(Interval) * threads;
  int64_t rows = kTopkBytes / each;
  rows = rows < 16 ? 16 : rows > kTopkBlock ? kTopkBlock : rows;
  return rows < n ? rows : n;
}

constexpr int64_t topk_filtered_workspace(int64_t n, int64_t g, int64_t k, int threads) {
  const int64_t own = topk_filtered_rows(n, g, k, threads) * topk_interval_capacity(k, g) *
                      static_cast<int64_t>(sizeof(Interval)) * threads;
  const int64_t plain = topk_workspace(n, g, k, DType::kFloat32, threads);
  return own > plain ? own : plain;
}

}  // namespace semobridge

// rank_counts: where the marked gallery rows of each query stand in its ranking, by counting.
//
//   greater[i] = gallery rows that score higher than marked row i       (the ranking above it)
//   equal[i]   = gallery rows that score the same, itself included      (its tie)
//
// That is all a retrieval metric needs, and it needs no sorted gallery: the scores of the marked
// rows are computed first and sorted, then every score of the stream adds one to the gap between
// two of them that it falls into. Marked rows come out in ascending order of score.
//
// Scores have one rounding whatever computed them, so ties are exact. NaN ranks with −infinity, and
// infinities with the largest finite numbers.
#pragma once
#include "core/view.h"

namespace semobridge {

constexpr int64_t kRankBlock = 1024;   // most queries of one call, or of a block of a symmetric one
constexpr int64_t kRankRowBytes = 96;  // of the workspace, for what is kept of a query

struct RankCountsArgs {
  ConstMatrix queries;                  // [*, D]
  ConstMatrix gallery;                  // [G, D]
  int64_t num_queries = 0;              // N
  const int64_t* query_rows = nullptr;  // [N] rows of queries
  const int64_t* marked = nullptr;      // gallery rows
  const int64_t* marked_begin =
      nullptr;                          // [N] query i's marked rows are marked[begin[i] .. end[i])
  const int64_t* marked_end = nullptr;  // [N]
  const int64_t* exclude = nullptr;     // [N] a row among the marked ones that does not count for
                                        // this query at all, or -1; may be null
  const int64_t* offsets = nullptr;     // [N + 1] into the outputs: marked less excluded, summed
  void* scores = nullptr;               // [offsets[N]] of the compute type
  int64_t* greater = nullptr;           // [offsets[N]]
  int64_t* equal = nullptr;             // [offsets[N]]
  void* in_order = nullptr;             // [offsets[N]] the scores in the order of the marked rows;
                                        // may be null, and is not written by a symmetric call
  void* workspace = nullptr;            // rank_counts_workspace(...) bytes
  int threads = 1;
};

// Queries beside one another with the same range share the work on their marked rows.
void rank_counts(const RankCountsArgs& args);

// The same where the queries are the gallery: each product of two rows is computed once and counted
// for both. query_rows is [G] here, every row once, those with marked rows first; N of them are
// queries, as many as the gallery has.
void rank_counts_symmetric(const RankCountsArgs& args);

// Buckets of a query with r marked rows: about two per row, so that a score is compared with one or
// two of them.
constexpr int64_t rank_buckets(int64_t r) {
  int64_t n = 32;
  while (n < 2 * r && n < (int64_t{1} << 20)) n *= 2;
  return n;
}

// Bytes.
int64_t rank_counts_workspace(const int64_t* offsets, int64_t n, int threads);

// Metrics of queries from the outputs of rank_counts (semobridge_ext/retrieval/metrics.py
// states the tie rule). out is [N, 3 + num_k]: AP, AP@R, R-precision, Recall@recall_at[..]; NaN for
// a query without marked rows.
void rank_metrics(int64_t n, const int64_t* offsets, const int64_t* greater, const int64_t* equal,
                  const int64_t* recall_at, int64_t num_k, double* out);

}  // namespace semobridge

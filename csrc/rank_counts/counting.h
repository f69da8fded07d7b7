// Where scores stand among the sorted marked scores of a query.
//
// Scores below the lowest marked one, often most, are dropped by a vector compare. A score of the
// rest finds its gap in a tree (rank_tree.h), or in a table of equal-width buckets: the bucket
// number is monotone in the score, so only the marked scores of its own bucket, one or two, need
// comparing.
#pragma once
#include "core/compare.h"
#include "core/select.h"
#include "rank_counts/rank_tree.h"

namespace semobridge {
namespace SB_ISA {
namespace {

template <class T>
SB_INLINE void count_by_buckets(const RankRow<T>& row, const T* scores, int64_t n,
                                uint32_t* counters) {
  using V = typename Simd<T>::Vec;
  constexpr int kLanes = Simd<T>::kLanes;
  const bool every = row.low <= -Limits<T>::kMax;  // NaN scores take part as well
  for (int64_t col = 0; col < n; col += kPanel) {
    const T* at = scores + col;
    T rest[kPanel];
    if (n - col < kPanel) {  // the last scores may end where the memory does
      for (int64_t i = 0; i < kPanel; ++i) rest[i] = i < n - col ? at[i] : T(0);
      at = rest;
    }
    uint32_t mask = first_columns(n - col);
    if (!every) mask &= pass_mask<true>(at, row.low);
    if (mask == 0) continue;
    T bucket[kPanel];
    for (int i = 0; i < kPanel; i += kLanes) {
      const V s = load(at + i), most = V{} + Limits<T>::kMax, top = V{} + row.top;
      const V b = ((s < most ? s : most) - row.low) * row.scale;
      store(bucket + i, b < top ? b : top);
    }
    for (; mask != 0; mask &= mask - 1) {
      const int j = __builtin_ctz(mask);
      const T s = ordered(at[j]);
      const int b = static_cast<int>(every ? bucket_of(row, s) : bucket[j]);
      const uint32_t gap = first_not_below(row.sorted, row.table[b], row.table[b + 1], s);
      ++counters[counter_of(row, gap, s)];
    }
  }
}

// Adds n <= kMaxGroup scores to the counters of a row with marked scores.
template <class T>
SB_INLINE void count_scores(const RankRow<T>& row, const T* scores, int64_t n, uint32_t* counters) {
#ifdef SB_RANK_TREE
  if constexpr (sizeof(T) == 4) {
    switch (row.depth) {
      case 2:
        return count_by_tree<2>(row, scores, n, counters);
      case 3:
        return count_by_tree<3>(row, scores, n, counters);
      case 4:
        return count_by_tree<4>(row, scores, n, counters);
      case 5:
        return count_by_tree<5>(row, scores, n, counters);
      case 6:
        return count_by_tree<6>(row, scores, n, counters);
      case 7:
        return count_by_tree<7>(row, scores, n, counters);
      default:
        break;
    }
  }
#endif
  count_by_buckets(row, scores, n, counters);
}

template <class T>
void build_buckets(RankRow<T>& row) {
  const int64_t buckets = rank_buckets(row.size);
  row.top = static_cast<T>(buckets - 1);
  const T width = row.sorted[row.size - 1] - row.low;
  row.scale = width > T(0) ? static_cast<T>(buckets) / width : T(0);
  if (!(row.scale < Limits<T>::kMax)) row.scale = T(0);  // a denormal width: one bucket holds all
  int64_t at = 0;
  for (int64_t b = 0; b < buckets; ++b) {
    while (at < row.size && bucket_of(row, row.sorted[at]) < static_cast<T>(b)) ++at;
    row.table[b] = static_cast<uint32_t>(at);
  }
  row.table[buckets] = static_cast<uint32_t>(row.size);
}

// Of a row whose marked scores are there.
template <class T>
void prepare_row(RankRow<T>& row) {
  sort_ascending(row.sorted, row.size);
  row.low = row.sorted[0];
  row.depth = tree_depth(row.size, row.low);
  if (row.depth > 0) {
    build_tree(row);
  } else {
    build_buckets(row);
  }
}

// Lays out rows [n] and their tables; returns what follows them, the counters of the threads.
template <class T>
uint32_t* lay_out_rows(const RankCountsArgs& a, RankRow<T>** rows) {
  const int64_t n = a.num_queries;
  *rows = static_cast<RankRow<T>*>(a.workspace);
  uint32_t* at = reinterpret_cast<uint32_t*>(static_cast<char*>(a.workspace) + n * kRankRowBytes);
  for (int64_t i = 0; i < n; ++i) {
    RankRow<T>& row = (*rows)[i];
    row = {};
    row.sorted = static_cast<T*>(a.scores) + a.offsets[i];
    row.size = a.offsets[i + 1] - a.offsets[i];
    row.table = at;
    row.counts = 2 * (a.offsets[i] - a.offsets[0] + i);
    at += rank_buckets(row.size) + 1;
  }
  return at;
}

SB_INLINE int64_t counters_of(const RankCountsArgs& a) {
  return 2 * (a.offsets[a.num_queries] - a.offsets[0] + a.num_queries);
}

// Adds up the counters of the team and writes what they say.
template <class T>
void write_counts(const RankCountsArgs& a, const RankRow<T>& row, uint32_t* counters,
                  int64_t counters_size, int64_t team, int64_t offset) {
  uint32_t* gaps = counters + row.counts;
  uint32_t* ties = gaps + row.size + 1;
  for (int64_t t = 1; t < team; ++t) {
    const uint32_t* other = counters + t * counters_size + row.counts;
    for (int64_t i = 0; i < 2 * (row.size + 1); ++i) gaps[i] += other[i];
  }
  if (row.has_excluded && row.excluded >= row.low) {
    const uint32_t end = static_cast<uint32_t>(row.size);
    const uint32_t gap = first_not_below(row.sorted, 0u, end, row.excluded);
    --gaps[counter_of(row, gap, row.excluded)];
  }
  int64_t above = gaps[row.size];
  for (int64_t end = row.size; end > 0;) {
    int64_t begin = end - 1;
    while (begin > 0 && row.sorted[begin - 1] == row.sorted[end - 1]) --begin;
    for (int64_t i = begin; i < end; ++i) {
      a.greater[offset + i] = above;
      a.equal[offset + i] = ties[begin];
    }
    above += int64_t{ties[begin]} + gaps[begin];
    end = begin;
  }
}

}  // namespace
}  // namespace SB_ISA
}  // namespace semobridge

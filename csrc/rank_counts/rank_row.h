// What is kept of a query: its sorted marked scores, and how to find a score among them.
#pragma once
#include "core/stream.h"
#include "rank_counts/rank_counts.h"

namespace semobridge {
namespace SB_ISA {
namespace {

constexpr uint32_t kScanAtMost = 8;  // marked scores looked at one by one

template <class T>
struct Limits;
template <>
struct Limits<float> {
  static constexpr float kMax = 3.40282347e+38f;
};
template <>
struct Limits<double> {
  static constexpr double kMax = 1.7976931348623157e+308;
};

// NaN and −infinity to the lowest number, +infinity to the highest.
template <class T>
SB_INLINE T ordered(T s) {
  if (!(s > -Limits<T>::kMax)) return -Limits<T>::kMax;
  return s < Limits<T>::kMax ? s : Limits<T>::kMax;
}

template <class T>
struct RankRow {
  T* sorted;  // marked scores, ascending
  int64_t size, filled;
  T low, scale, top;  // bucket = min((score - low) * scale, top)
  int depth;          // of the tree; 0: buckets
  uint32_t* table;    // [rank_buckets + 1] first marked score of each bucket, or the tree [2^depth]
  int64_t counts;     // where its counters begin in a thread's: gaps [size + 1], ties [size + 1]
  bool has_excluded;
  T excluded;
};
static_assert(sizeof(RankRow<double>) <= kRankRowBytes, "rows lie in the workspace");

template <class T>
SB_INLINE T bucket_of(const RankRow<T>& row, T score) {
  const T b = (score - row.low) * row.scale;
  return b < row.top ? b : row.top;
}

// The first marked score from `begin` on, `end` at most, that is not below `score`.
template <class T>
SB_INLINE uint32_t first_not_below(const T* sorted, uint32_t begin, uint32_t end, T score) {
  while (end - begin > kScanAtMost) {
    const uint32_t middle = begin + (end - begin) / 2;
    if (sorted[middle] < score) {
      begin = middle + 1;
    } else {
      end = middle;
    }
  }
  while (begin < end && sorted[begin] < score) ++begin;
  return begin;
}

// Where a score that is not below the lowest marked one is counted.
template <class T>
SB_INLINE int64_t counter_of(const RankRow<T>& row, uint32_t gap, T score) {
  const bool tie = gap < row.size && row.sorted[gap] == score;
  return gap + (tie ? row.size + 1 : 0);
}

}  // namespace
}  // namespace SB_ISA
}  // namespace semobridge

// The metrics that follow from counts.
#include <algorithm>
#include <limits>

#include "rank_counts/rank_counts.h"

namespace semobridge {
namespace {

// Relevant items of one query that share a score: `relevant` of `equal` gallery items, below
// `greater` others of which `above` are relevant.
struct TieGroup {
  double greater, equal, relevant, above;
};

// Expected sum of precisions at the group's relevant items, over all orders of the tied ones, of
// those that end up at rank <= limit. Rank p of the group holds a relevant item with probability
// m/t; of the p - 1 ranks before it, (p - 1)(m - 1)/(t - 1) then hold one as well.
double expected_precision(const TieGroup& g, double limit) {
  double sum = 0.0;
  const double last = std::min(g.equal, limit - g.greater);
  const double slope = g.equal > 1.0 ? (g.relevant - 1.0) / (g.equal - 1.0) : 0.0;
  for (double p = 1.0; p <= last; p += 1.0) {
    sum += (g.above + 1.0 + (p - 1.0) * slope) / (g.greater + p);
  }
  return sum * g.relevant / g.equal;
}

// Chance that one of the group's relevant items is among the first k.
double expected_hit(const TieGroup& g, double k) {
  const double slots = std::min(g.equal, k - g.greater);
  double miss = 1.0;
  for (double i = 0.0; i < slots && miss > 0.0; i += 1.0) {
    miss *= std::max(0.0, g.equal - g.relevant - i) / (g.equal - i);
  }
  return 1.0 - miss;
}

}  // namespace

int64_t rank_counts_workspace(const int64_t* offsets, int64_t n, int threads) {
  int64_t starts = 0;
  for (int64_t i = 0; i < n; ++i) starts += rank_buckets(offsets[i + 1] - offsets[i]) + 1;
  const int64_t counts = 2 * (offsets[n] - offsets[0] + n);
  return n * kRankRowBytes + (starts + counts * threads) * static_cast<int64_t>(sizeof(uint32_t));
}

void rank_metrics(int64_t n, const int64_t* offsets, const int64_t* greater, const int64_t* equal,
                  const int64_t* recall_at, int64_t num_k, double* out) {
  for (int64_t q = 0; q < n; ++q) {
    double* row = out + q * (3 + num_k);
    const int64_t begin = offsets[q], end = offsets[q + 1];
    if (begin == end) {
      std::fill(row, row + 3 + num_k, std::numeric_limits<double>::quiet_NaN());
      continue;
    }
    std::fill(row, row + 3 + num_k, 0.0);
    const double total = static_cast<double>(end - begin);
    int64_t above = 0;
    for (int64_t last = end; last > begin;) {
      int64_t first = last - 1;  // the group is [first, last): one rank for all of it
      while (first > begin && greater[first - 1] == greater[last - 1]) --first;
      const TieGroup group{static_cast<double>(greater[first]), static_cast<double>(equal[first]),
                           static_cast<double>(last - first), static_cast<double>(above)};
      row[0] += expected_precision(group, std::numeric_limits<double>::infinity()) / total;
      row[1] += expected_precision(group, total) / total;
      const double slots = std::clamp(total - group.greater, 0.0, group.equal);
      row[2] += group.relevant * slots / group.equal / total;
      if (above == 0) {
        for (int64_t i = 0; i < num_k; ++i) {
          row[3 + i] = expected_hit(group, static_cast<double>(recall_at[i]));
        }
      }
      above += last - first;
      last = first;
    }
  }
}

}  // namespace semobridge

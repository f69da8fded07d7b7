// Counts where the queries are the gallery, against loops over every score. Rows are small whole
// numbers, whose products are exact and tie.
#pragma once
#include <algorithm>
#include <vector>

#include "check.h"
#include "rank_counts/rank_counts.h"

namespace test {

struct Ranks {
  std::vector<int64_t> order, marked, begin, end, exclude, offsets, greater, equal;
  std::vector<float> scores;
};

// Rows r and r' have the same label where r = r' modulo `labels`; a query leaves itself out. The
// rows past `queries` ask nothing.
inline Ranks ranks_of(const Buffer& x, int64_t queries, int64_t labels, int threads) {
  const int64_t g = x.rows;
  Ranks r;
  std::vector<int64_t> first;
  for (int64_t c = 0; c < labels; ++c) {
    first.push_back(static_cast<int64_t>(r.marked.size()));
    for (int64_t i = c; i < g; i += labels) r.marked.push_back(i);
  }
  first.push_back(g);
  r.order = r.marked;
  r.offsets.push_back(0);
  for (int64_t i = 0; i < queries; ++i) {
    const int64_t own = r.order[i], c = own % labels;
    r.begin.push_back(first[c]), r.end.push_back(first[c + 1]), r.exclude.push_back(own);
    r.offsets.push_back(r.offsets.back() + r.end.back() - r.begin.back() - 1);
  }
  const size_t total = static_cast<size_t>(r.offsets.back());
  r.greater.resize(total), r.equal.resize(total), r.scores.resize(total);
  std::vector<char> work(
      static_cast<size_t>(semobridge::rank_counts_workspace(r.offsets.data(), queries, threads)));
  semobridge::RankCountsArgs a;
  a.queries = a.gallery = x.view(), a.num_queries = queries, a.query_rows = r.order.data();
  a.marked = r.marked.data(), a.marked_begin = r.begin.data(), a.marked_end = r.end.data();
  a.exclude = r.exclude.data(), a.offsets = r.offsets.data(), a.scores = r.scores.data();
  a.greater = r.greater.data(), a.equal = r.equal.data(), a.workspace = work.data();
  a.threads = threads;
  semobridge::rank_counts_symmetric(a);
  return r;
}

inline void check_ranks(const Buffer& x, int64_t queries, int64_t labels, int threads) {
  const Ranks r = ranks_of(x, queries, labels, threads);
  const int64_t g = x.rows;
  std::vector<double> own(static_cast<size_t>(g)), relevant;
  for (int64_t i = 0; i < queries; ++i) {
    const int64_t row = r.order[i];
    relevant.clear();
    for (int64_t j = 0; j < g; ++j) {
      own[j] = 0;
      for (int64_t k = 0; k < x.cols; ++k) own[j] += x.get(row, k) * x.get(j, k);
      if (j != row && j % labels == row % labels) relevant.push_back(own[j]);
    }
    std::sort(relevant.begin(), relevant.end());
    for (size_t m = 0; m < relevant.size(); ++m) {
      int64_t above = 0, level = 0;
      for (int64_t j = 0; j < g; ++j) {
        above += j != row && own[j] > relevant[m];
        level += j != row && own[j] == relevant[m];
      }
      const size_t at = static_cast<size_t>(r.offsets[i]) + m;
      check(r.scores[at] == relevant[m] && r.greater[at] == above && r.equal[at] == level,
            "ranks of %ld x %ld: row %ld, %g: %ld above and %ld level, not %ld and %ld", long(g),
            long(x.cols), long(row), static_cast<double>(r.scores[at]), long(r.greater[at]),
            long(r.equal[at]), long(above), long(level));
    }
  }
}

inline void test_ranks() {
  Random random{31};
  struct Shape {
    int64_t rows, cols, queries, labels;
    int threads;
  };
  // One tile; several, of which the last rows ask nothing; several groups of keys, the last of them
  // of rows that ask nothing, two threads; many marked rows.
  for (const Shape& s : {Shape{12, 3, 12, 5, 1}, Shape{333, 5, 300, 60, 1},
                         Shape{400, 520, 250, 130, 2}, Shape{290, 4, 290, 2, 1}}) {
    Buffer x(DType::kFloat32, s.rows, s.cols, 2);
    for (int64_t r = 0; r < s.rows; ++r) {
      for (int64_t c = 0; c < s.cols; ++c) {
        x.set(r, c, static_cast<double>(random.bits() % 5) - 2);
      }
    }
    check_ranks(x, s.queries, s.labels, s.threads);
  }
}

}  // namespace test

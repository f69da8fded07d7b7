#include "core/select.h"

#include <algorithm>
#include <limits>

namespace semobridge {
namespace {

template <class T>
T rank_score(T score) {
  return score == score ? score : -std::numeric_limits<T>::infinity();
}

template <class T>
struct Better {
  bool operator()(const Candidate<T>& a, const Candidate<T>& b) const {
    const T x = rank_score(a.score), y = rank_score(b.score);
    return x > y || (x == y && a.row < b.row);
  }
};

template <class T>
void keep_best_of(Candidate<T>* candidates, int64_t n, int64_t k) {
  if (k < n) std::nth_element(candidates, candidates + k - 1, candidates + n, Better<T>());
}

// Scores near the smallest normal number may be off by this, where it is flushed to zero on the
// way.
constexpr float kFlushedScores = 2e-32f;

void raise(float* threshold, float score) {
  *threshold = std::max(*threshold, score - kFlushedScores);
}

}  // namespace

int64_t drop_hopeless(Interval* intervals, int64_t n, int64_t k, float* threshold) {
  if (n >= k) {
    std::nth_element(intervals, intervals + k - 1, intervals + n,
                     [](const Interval& a, const Interval& b) { return a.lower > b.lower; });
    raise(threshold, intervals[k - 1].lower);
  }
  const float least = *threshold;
  const auto end = std::remove_if(intervals, intervals + n,
                                  [least](const Interval& i) { return i.upper < least; });
  return end - intervals;
}

int64_t keep_best_known(Interval* intervals, int64_t n, int64_t k, float* threshold) {
  if (n < k) return n;
  std::nth_element(intervals, intervals + k - 1, intervals + n,
                   [](const Interval& a, const Interval& b) {
                     return a.lower > b.lower || (a.lower == b.lower && a.row < b.row);
                   });
  raise(threshold, intervals[k - 1].lower);
  return k;
}

void keep_best(Candidate<float>* c, int64_t n, int64_t k) { keep_best_of(c, n, k); }
void keep_best(Candidate<double>* c, int64_t n, int64_t k) { keep_best_of(c, n, k); }

void sort_best_first(Candidate<float>* c, int64_t n) { std::sort(c, c + n, Better<float>()); }
void sort_best_first(Candidate<double>* c, int64_t n) { std::sort(c, c + n, Better<double>()); }

void sort_ascending(float* values, int64_t n) { std::sort(values, values + n); }
void sort_ascending(double* values, int64_t n) { std::sort(values, values + n); }

}  // namespace semobridge

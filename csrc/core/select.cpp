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

}  // namespace

void keep_best(Candidate<float>* c, int64_t n, int64_t k) { keep_best_of(c, n, k); }
void keep_best(Candidate<double>* c, int64_t n, int64_t k) { keep_best_of(c, n, k); }

void sort_best_first(Candidate<float>* c, int64_t n) { std::sort(c, c + n, Better<float>()); }
void sort_best_first(Candidate<double>* c, int64_t n) { std::sort(c, c + n, Better<double>()); }

void sort_ascending(float* values, int64_t n) { std::sort(values, values + n); }
void sort_ascending(double* values, int64_t n) { std::sort(values, values + n); }

}  // namespace semobridge

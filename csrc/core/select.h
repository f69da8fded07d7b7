// Selection and sorting for the kernels, compiled once: kernel files use no std templates.
//
// Order of candidates: score descending, equal scores by lower row; NaN ranks with −infinity.
#pragma once
#include <cstdint>

namespace semobridge {

template <class T>
struct Candidate {
  T score;
  uint32_t row;
};

// Moves the k best of n candidates to the front, the worst of them to position k - 1.
void keep_best(Candidate<float>* candidates, int64_t n, int64_t k);
void keep_best(Candidate<double>* candidates, int64_t n, int64_t k);

void sort_best_first(Candidate<float>* candidates, int64_t n);
void sort_best_first(Candidate<double>* candidates, int64_t n);

// A score that is known to lie in [lower, upper]; both ends the same: it is known. No end is NaN
// but `upper`, where nothing is known.
struct Interval {
  float lower, upper;
  uint32_t row;
};

// Drops those of n intervals that cannot be among the k best scores, and returns how many are left.
// `threshold` goes in as a score that k others are known to reach, or −infinity, and comes out as
// the best such score; what is below it by its upper end is dropped, so that every tie is kept.
int64_t drop_hopeless(Interval* intervals, int64_t n, int64_t k, float* threshold);

// The same for known scores: at most k are left, ties by lower row.
int64_t keep_best_known(Interval* intervals, int64_t n, int64_t k, float* threshold);

void sort_ascending(float* values, int64_t n);
void sort_ascending(double* values, int64_t n);

}  // namespace semobridge

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

void sort_ascending(float* values, int64_t n);
void sort_ascending(double* values, int64_t n);

}  // namespace semobridge

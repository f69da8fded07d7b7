// count_correct for one instruction set; see count_correct/count_correct.h for what it computes.
#include <omp.h>

#include "core/interrupt.h"
#include "core/table.h"
#include "core/vexp.h"
#include "count_correct/count_correct.h"

namespace semobridge {
namespace SB_ISA {
namespace {

constexpr int64_t kRowsPerBlock =
    256;  // their candidates stay in L2 while the trials pass over them

template <class T>
struct Trial {
  T s, alpha, beta, gamma, l1, l2, l3;
  double exact[7];
  T above, below;  // certain win and loss of a candidate: this times the label's logit
  bool wide;       // exponents that this type may flush to zero: always decide in float64

  Trial(const double* p, double largest_exponent) {
    for (int i = 0; i < 7; ++i) exact[i] = p[i];
    s = static_cast<T>(p[0]), alpha = static_cast<T>(p[1]), beta = static_cast<T>(p[2]);
    gamma = static_cast<T>(p[3]), l1 = static_cast<T>(p[4]), l2 = static_cast<T>(p[5]);
    l3 = static_cast<T>(p[6]);
    double steep = p[1] > p[2] ? p[1] : p[2];
    steep = steep > p[3] ? steep : p[3];
    // exp(x) carries the rounding of x, a few units in the last place of each of its summands.
    const double reach = 2 * steep + p[0] * largest_exponent;
    const double unit = sizeof(T) == 8 ? 2.3e-16 : 1.2e-7;
    const double tolerance = 4 * unit * (8 + 2 * reach);
    above = static_cast<T>(1 + tolerance), below = static_cast<T>(1 - tolerance);
    wide = !(reach < (sizeof(T) == 8 ? 600 : 70));
  }
};

template <class T>
SB_INLINE typename Simd<T>::Vec logit(const Trial<T>& t, typename Simd<T>::Vec z1,
                                      typename Simd<T>::Vec z2, typename Simd<T>::Vec z3,
                                      typename Simd<T>::Vec d) {
  const typename Simd<T>::Vec shift = d * t.s;  // w·exp(x) = exp(x + s·D)
  return vexp<T>(z1 * t.alpha - t.alpha) * t.l1 + vexp<T>(z2 * t.beta - t.beta + shift) * t.l2 +
         vexp<T>(z3 * t.gamma - t.gamma + shift) * t.l3;
}

template <class I>
SB_INLINE bool any(I mask) {
  int64_t words[SB_VEC_BYTES / 8], all = 0;
  __builtin_memcpy(words, &mask, sizeof(words));
  for (int64_t word : words) all |= word;
  return all != 0;
}

double exact_logit(const double* p, double z1, double z2, double z3, double d) {
  return p[4] * __builtin_exp(-p[1] * (1 - z1)) +
         __builtin_exp(p[0] * d) *
             (p[5] * __builtin_exp(-p[2] * (1 - z2)) + p[6] * __builtin_exp(-p[3] * (1 - z3)));
}

template <class T>
struct Counter {
  using V = typename Simd<T>::Vec;
  static constexpr int kLanes = Simd<T>::kLanes;
  const CountCorrectArgs& a;

  const T* label(int i) const { return static_cast<const T*>(i < 3 ? a.label_z[i] : a.label_d); }
  const T* candidate(int i) const {
    return static_cast<const T*>(i < 3 ? a.candidate_z[i] : a.candidate_d);
  }

  bool exact_wins(const Trial<T>& t, int64_t row) const {
    const int64_t y = a.labels[row];
    const double own =
        exact_logit(t.exact, label(0)[row], label(1)[row], label(2)[row], a.exponents[y]);
    for (int64_t i = a.offsets[row]; i < a.offsets[row + 1]; ++i) {
      const int64_t c = a.candidates[i];
      const double other =
          exact_logit(t.exact, candidate(0)[i], candidate(1)[i], candidate(2)[i], a.exponents[c]);
      if (other > own || (other == own && c < y)) return false;
    }
    return true;
  }

  bool wins(const Trial<T>& t, int64_t row, T own) const {
    const V above = V{} + own * t.above, below = V{} + own * t.below;
    bool close = false;
    for (int64_t i = a.offsets[row]; i < a.offsets[row + 1]; i += kLanes) {
      const V other = logit(t, load(candidate(0) + i), load(candidate(1) + i),
                            load(candidate(2) + i), load(candidate(3) + i));
      if (!any(other >= below)) continue;
      if (any(other > above)) return false;
      close = true;
    }
    return !close || exact_wins(t, row);
  }

  int64_t rows(const Trial<T>& t, int64_t begin, int64_t end) const {
    int64_t correct = 0;
    for (int64_t row = begin; row < end; row += kLanes) {
      const int64_t n = end - row < kLanes ? end - row : kLanes;
      if (t.wide) {
        for (int64_t j = 0; j < n; ++j) correct += exact_wins(t, row + j);
        continue;
      }
      T values[4][kLanes] = {}, own[kLanes];
      for (int i = 0; i < 4; ++i) {
        for (int64_t j = 0; j < n; ++j) values[i][j] = label(i)[row + j];
      }
      store(own, logit(t, load(values[0]), load(values[1]), load(values[2]), load(values[3])));
      for (int64_t j = 0; j < n; ++j) correct += wins(t, row + j, own[j]);
    }
    return correct;
  }
};

template <class T>
void count_correct_typed(const CountCorrectArgs& a) {
  const Counter<T> counter{a};
  const int64_t blocks = (a.rows + kRowsPerBlock - 1) / kRowsPerBlock;
  for (int64_t t = 0; t < a.trials; ++t) a.correct[t] = 0;
  const int team = blocks < a.threads ? static_cast<int>(blocks) : a.threads;
  Watch watch;
#pragma omp parallel for schedule(dynamic, 1) num_threads(team) if (team > 1)
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t begin = b * kRowsPerBlock;
    const int64_t end = begin + kRowsPerBlock < a.rows ? begin + kRowsPerBlock : a.rows;
    for (int64_t t = 0; t < a.trials && !watch.stop(); ++t) {
      const int64_t won = counter.rows(Trial<T>(a.params + 7 * t, a.largest_exponent), begin, end);
#pragma omp atomic
      a.correct[t] += won;
    }
  }
  watch.finish();
}

}  // namespace

void count_correct_entry(const CountCorrectArgs& a) {
  require(is_compute_dtype(a.dtype), "count_correct: z must be float32 or float64");
  if (a.dtype == DType::kFloat64) {
    count_correct_typed<double>(a);
  } else {
    count_correct_typed<float>(a);
  }
}

}  // namespace SB_ISA
}  // namespace semobridge

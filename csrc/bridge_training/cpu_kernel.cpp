// The elementwise steps of bridge_training/bridge_training.h for one instruction set.
#include <omp.h>

#include "bridge_training/bridge_training.h"
#include "core/adamw.h"
#include "core/scratch.h"
#include "core/table.h"
#include "core/team.h"
#include "core/vexp.h"

namespace semobridge {
namespace SB_ISA {
namespace {

template <class T>
SB_INLINE T dot(const T* a, const T* b, int64_t n) {
  using V = typename Simd<T>::Vec;
  constexpr int kLanes = Simd<T>::kLanes;
  V acc[4] = {};
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) acc[j] += load(a + i + j * kLanes) * load(b + i + j * kLanes);
  }
  for (; i + kLanes <= n; i += kLanes) acc[0] += load(a + i) * load(b + i);
  T sum = sum_lanes<T>((acc[0] + acc[1]) + (acc[2] + acc[3]));
  for (; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

template <class T>
SB_INLINE T root(T x) {
  return static_cast<T>(__builtin_sqrt(x > T(0) ? x : T(0)));
}

template <class T>
SB_INLINE T reciprocal(T x) {
  return x == T(0) ? T(0) : T(1) / x;
}

template <class T>
void norms_of_class(const ShotNormsArgs& a, int64_t c) {
  const int64_t t = a.width, begin = a.rows.offsets[c], end = a.rows.offsets[c + 1];
  const T* tau = a.tau != nullptr ? static_cast<const T*>(a.tau) + c * t : nullptr;
  T* __restrict mean = static_cast<T*>(a.mean) + c * t;
  for (int64_t i = 0; i < t; ++i) mean[i] = T(0);
  const T share = begin < end ? T(1) / static_cast<T>(end - begin) : T(0);
  for (int64_t n = begin; n < end; ++n) {
    T* __restrict e = static_cast<T*>(a.e) + n * t;
    if (tau != nullptr) {
      for (int64_t i = 0; i < t; ++i) e[i] += tau[i];
    }
    const T r = root(dot(e, e, t)), factor = reciprocal(r) * share;
    static_cast<T*>(a.r)[n] = r;
    for (int64_t i = 0; i < t; ++i) mean[i] += e[i] * factor;
  }
}

template <class T>
void dots_of_class(const ShotDotsArgs& a, int64_t c) {
  const T* e = static_cast<const T*>(a.e);
  const T* h = static_cast<const T*>(a.h);
  for (int64_t n = a.rows.offsets[c]; n < a.rows.offsets[c + 1]; ++n) {
    static_cast<T*>(a.q)[n] = root(dot(e + n * a.width, h + n * a.width, a.width));
  }
}

// One row: three passes over values that the first-level cache holds.
template <class T>
SB_INLINE void loss_of_row(const RowLossArgs& a, int64_t n, int64_t y, T* __restrict line) {
  using V = typename Simd<T>::Vec;
  constexpr int kLanes = Simd<T>::kLanes;
  const int64_t c = a.x.cols, padded = (c + kLanes - 1) / kLanes * kLanes;
  const T scale = static_cast<const T*>(a.scale)[n], coefficient = static_cast<T>(a.coefficient);
  T* __restrict x = static_cast<T*>(a.x.data) + (n - a.row_begin) * a.x.row_stride;
  if (a.add != nullptr) {
    const T* __restrict add = static_cast<const T*>(a.add) + y * c;
    for (int64_t i = 0; i < c; ++i) line[i] = (x[i] + add[i]) * scale;
  } else {
    for (int64_t i = 0; i < c; ++i) line[i] = x[i] * scale;
  }
  const T lowest = sizeof(T) == 8 ? T(-1e300) : T(-1e38);
  for (int64_t i = c; i < padded; ++i) line[i] = lowest;
  V top = V{} + lowest;
  for (int64_t i = 0; i < padded; i += kLanes) {
    const V v = load(line + i);
    top = v > top ? v : top;
  }
  const T most = max_lanes<T>(top);
  V sum{}, weighted{};
  T* __restrict exps = line + padded;
  for (int64_t i = 0; i < padded; i += kLanes) {
    const V v = load(line + i), e = vexp<T>(v - most);
    sum += e;
    weighted += e * v;
    store(exps + i, e);
  }
  const T total = sum_lanes<T>(sum), own = line[y];
  const T expected = sum_lanes<T>(weighted) / total;  // Σ p·logit
  static_cast<T*>(a.loss)[n] = coefficient * (static_cast<T>(__builtin_log(total)) + most - own);
  if (a.dot != nullptr) static_cast<T*>(a.dot)[n] = coefficient * (expected - own);
  const T factor = coefficient * scale / total;
  for (int64_t i = 0; i < c; ++i) x[i] = exps[i] * factor;
  x[y] -= coefficient * scale;
  if (a.sums != nullptr) {
    T* __restrict sums = static_cast<T*>(a.sums) + y * c;
    for (int64_t i = 0; i < c; ++i) sums[i] += x[i];
  }
}

template <class T>
void loss_of_class(const RowLossArgs& a, int64_t c) {
  constexpr int kLanes = Simd<T>::kLanes;
  const int64_t padded = (a.x.cols + kLanes - 1) / kLanes * kLanes;
  T* line = thread_row_scratch<T>().reserve(2 * padded);
  for (int64_t n = a.rows.offsets[c]; n < a.rows.offsets[c + 1]; ++n) loss_of_row<T>(a, n, c, line);
}

template <class T>
void grads_of_class(const ShotGradsArgs& a, int64_t c) {
  const int64_t t = a.width, begin = a.rows.offsets[c], end = a.rows.offsets[c + 1];
  const T* __restrict m = static_cast<const T*>(a.grad_mean) + c * t;
  T* __restrict tau = a.grad_tau != nullptr ? static_cast<T*>(a.grad_tau) + c * t : nullptr;
  if (tau != nullptr) {
    for (int64_t i = 0; i < t; ++i) tau[i] = T(0);
  }
  const T share = begin < end ? T(1) / static_cast<T>(end - begin) : T(0);
  for (int64_t n = begin; n < end; ++n) {
    const T* __restrict e = static_cast<const T*>(a.e) + n * t;
    T* __restrict h = static_cast<T*>(a.h) + n * t;
    const T inverse = reciprocal(static_cast<const T*>(a.r)[n]);
    const T direct = share * inverse, along = direct * inverse * inverse * dot(e, m, t);
    if (a.dot != nullptr) {
      const T q = reciprocal(static_cast<const T*>(a.q)[n]);
      const T length = static_cast<const T*>(a.dot)[n] * q * q;
      for (int64_t i = 0; i < t; ++i) h[i] = direct * m[i] - along * e[i] - length * h[i];
    } else {
      for (int64_t i = 0; i < t; ++i) h[i] = direct * m[i] - along * e[i];
    }
    if (tau != nullptr) {
      for (int64_t i = 0; i < t; ++i) tau[i] += h[i];
    }
  }
}

// With fewer values another thread costs more than it takes off, and on a busy machine a barrier
// can cost a time slice.
constexpr int64_t kValuesPerThread = 1 << 15;

template <class Args>
SB_INLINE void each_class(const Args& a, int64_t width, void (*work)(const Args&, int64_t)) {
  const int64_t values = (a.rows.offsets[a.rows.last] - a.rows.offsets[a.rows.first]) * width;
  const int team = worth_threads(static_cast<double>(values), kValuesPerThread, a.rows.threads);
#pragma omp parallel for schedule(dynamic, 4) num_threads(team) if (team > 1)
  for (int64_t c = a.rows.first; c < a.rows.last; ++c) work(a, c);
}

template <class T>
void adamw_typed(const AdamwArgs& a) {
  // The scalars as torch computes them: in float64, rounded once where they meet a tensor.
  double power1 = 1, power2 = 1;
  for (int64_t i = 0; i < a.step; ++i) {
    power1 *= a.beta1;
    power2 *= a.beta2;
  }
  AdamwFactors<T> f = adamw_factors<T>(1 - a.rate * a.decay, a.beta1, a.beta2, a.epsilon);
  f.rate = static_cast<T>(a.rate / (1 - power1));
  f.correction = static_cast<T>(__builtin_sqrt(1 - power2));
  T* __restrict parameter = static_cast<T*>(a.parameter);
  const T* __restrict gradient = static_cast<const T*>(a.gradient);
  T* __restrict first = static_cast<T*>(a.first);
  T* __restrict second = static_cast<T*>(a.second);
  constexpr int64_t kChunk = 4096;
  const int team = worth_threads(static_cast<double>(a.size), kValuesPerThread, a.threads);
#pragma omp parallel for schedule(static) num_threads(team) if (team > 1)
  for (int64_t begin = 0; begin < a.size; begin += kChunk) {
    const int64_t end = begin + kChunk < a.size ? begin + kChunk : a.size;
    for (int64_t i = begin; i < end; ++i) {
      parameter[i] = adamw_value<T>(f, gradient[i], parameter[i], first[i], second[i]);
    }
  }
}

void check_rows(const ClassRows& rows) {
  require(is_compute_dtype(rows.dtype), "bridge_training: dtype must be float32 or float64");
  require(rows.offsets != nullptr && rows.first >= 0 && rows.first <= rows.last,
          "bridge_training: classes must be a range of the offsets");
}

template <class Args>
void check(const Args& a) {
  check_rows(a.rows);
}

template <>
void check(const RowLossArgs& a) {
  check_rows(a.rows);
  require(a.x.dtype == a.rows.dtype, "row_loss: x must have the dtype of the batch");
  require(a.x.row_stride >= a.x.cols, "row_loss: stride must be at least the number of classes");
}

}  // namespace

#define SB_BY_CLASS(name, Args, width, work)      \
  void name##_entry(const Args& a) {              \
    check(a);                                     \
    if (a.rows.dtype == DType::kFloat64) {        \
      each_class<Args>(a, a.width, work<double>); \
    } else {                                      \
      each_class<Args>(a, a.width, work<float>);  \
    }                                             \
  }

SB_BY_CLASS(shot_norms, ShotNormsArgs, width, norms_of_class)
SB_BY_CLASS(shot_dots, ShotDotsArgs, width, dots_of_class)
SB_BY_CLASS(row_loss, RowLossArgs, x.cols, loss_of_class)
SB_BY_CLASS(shot_grads, ShotGradsArgs, width, grads_of_class)

void adamw_entry(const AdamwArgs& a) {
  require(is_compute_dtype(a.dtype), "adamw: dtype must be float32 or float64");
  require(a.step >= 1, "adamw: step counts from 1");
  if (a.dtype == DType::kFloat64) {
    adamw_typed<double>(a);
  } else {
    adamw_typed<float>(a);
  }
}

}  // namespace SB_ISA
}  // namespace semobridge

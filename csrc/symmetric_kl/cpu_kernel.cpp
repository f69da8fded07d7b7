// symmetric_kl and its gradient for one instruction set; see symmetric_kl.h for what they compute.
#include <omp.h>

#include "core/interrupt.h"
#include "core/scratch.h"
#include "core/table.h"
#include "core/team.h"
#include "core/vexp.h"
#include "symmetric_kl/symmetric_kl.h"

namespace semobridge {
namespace SB_ISA {
namespace {

constexpr int64_t kRows = 16;                  // between two looks at the watch
constexpr int64_t kValuesPerThread = 1 << 14;  // fewer are not worth another thread

template <class T>
constexpr T kLowest = sizeof(T) == 8 ? T(-1e300) : T(-1e38);

SB_INLINE int64_t padded_to(int64_t n, int64_t lanes) { return (n + lanes - 1) / lanes * lanes; }

template <class T>
SB_INLINE const void* row_of(const ConstMatrix& m, int64_t n) {
  return static_cast<const char*>(m.data) + n * m.row_stride * dtype_size(m.dtype);
}

// Logits of a row over t less the largest, in `line`; columns past the row vanish under exp.
template <class T>
SB_INLINE T shifted_row(const ConstMatrix& m, int64_t n, T inverse, int64_t padded, T* line) {
  using V = typename Simd<T>::Vec;
  constexpr int kLanes = Simd<T>::kLanes;
  widen<T>(row_of<T>(m, n), m.dtype, m.cols, line);
  for (int64_t i = m.cols; i < padded; ++i) line[i] = T(0);
  for (int64_t i = 0; i < padded; i += kLanes) store(line + i, load(line + i) * inverse);
  for (int64_t i = m.cols; i < padded; ++i) line[i] = kLowest<T>;  // finite: infinity gives NaN
  V top = V{} + kLowest<T>;
  for (int64_t i = 0; i < padded; i += kLanes) {
    const V v = load(line + i);
    top = v > top ? v : top;
  }
  const T most = max_lanes<T>(top);
  for (int64_t i = 0; i < padded; i += kLanes) store(line + i, load(line + i) - most);
  return most;
}

template <class T>
SB_INLINE T exponentials(const T* __restrict line, int64_t padded, T* __restrict exps) {
  using V = typename Simd<T>::Vec;
  V sum{};
  for (int64_t i = 0; i < padded; i += Simd<T>::kLanes) {
    const V e = vexp<T>(load(line + i));
    sum += e;
    store(exps + i, e);
  }
  return sum_lanes<T>(sum);
}

template <class T>
void forward_row(const SymmetricKlArgs& a, int64_t n, T inverse, int64_t padded, T* lines) {
  using V = typename Simd<T>::Vec;
  T *u = lines, *v = u + padded, *exp_u = v + padded, *exp_v = exp_u + padded;
  const T top_a = shifted_row<T>(a.a, n, inverse, padded, u);
  const T top_b = shifted_row<T>(a.b, n, inverse, padded, v);
  const T sum_a = exponentials<T>(u, padded, exp_u), sum_b = exponentials<T>(v, padded, exp_v);
  const T log_a = static_cast<T>(__builtin_log(sum_a)),
          log_b = static_cast<T>(__builtin_log(sum_b));
  const T share_a = T(1) / sum_a, share_b = T(1) / sum_b;
  V both{}, forward{}, backward{};
  for (int64_t i = 0; i < padded; i += Simd<T>::kLanes) {
    const V d = (load(u + i) - log_a) - (load(v + i) - log_b);
    const V p = load(exp_u + i) * share_a, q = load(exp_v + i) * share_b;
    both += (p - q) * d;  // no term is negative: nearly equal rows keep their digits
    forward += p * d;
    backward -= q * d;
  }
  static_cast<T*>(a.rows)[n] = T(0.5) * sum_lanes<T>(both);
  T* stats = static_cast<T*>(a.stats) + n * kSymmetricKlStats;
  stats[0] = top_a, stats[1] = log_a, stats[2] = top_b, stats[3] = log_b;
  stats[4] = sum_lanes<T>(forward), stats[5] = sum_lanes<T>(backward);
}

template <class T>
void backward_row(const SymmetricKlBwdArgs& a, int64_t n, T inverse, int64_t padded, T* lines) {
  using V = typename Simd<T>::Vec;
  T *u = lines, *v = u + padded;
  widen<T>(row_of<T>(a.a, n), a.a.dtype, a.a.cols, u);
  widen<T>(row_of<T>(a.b, n), a.b.dtype, a.b.cols, v);
  for (int64_t i = a.a.cols; i < padded; ++i) u[i] = v[i] = T(0);
  const T* stats = static_cast<const T*>(a.stats) + n * kSymmetricKlStats;
  const T factor = T(0.5) * inverse * static_cast<const T*>(a.grad)[n];
  for (int64_t i = 0; i < padded; i += Simd<T>::kLanes) {
    const V x = (load(u + i) * inverse - stats[0]) - stats[1];
    const V y = (load(v + i) * inverse - stats[2]) - stats[3];
    const V p = vexp<T>(x), q = vexp<T>(y), d = x - y;
    store(u + i, factor * (p * (d - stats[4]) + (p - q)));
    store(v + i, factor * (q * (-d - stats[5]) + (q - p)));
  }
  const auto write = [n](const Matrix& m, const T* line) {
    if (m.data == nullptr) return;
    char* row = static_cast<char*>(m.data) + n * m.row_stride * dtype_size(m.dtype);
    narrow<T>(line, T(1), m.cols, m.dtype, row);
  };
  write(a.grad_a, u);
  write(a.grad_b, v);
}

template <class T, class Args>
void each_row(const Args& a, int64_t lines, void (*work)(const Args&, int64_t, T, int64_t, T*)) {
  const T inverse = static_cast<T>(1 / a.temperature);
  const int64_t padded = padded_to(a.a.cols, Simd<T>::kLanes);
  const int team =
      worth_threads(static_cast<double>(a.a.rows) * a.a.cols, kValuesPerThread, a.threads);
  Watch watch;
#pragma omp parallel num_threads(team) if (team > 1)
  {
    T* scratch = thread_row_scratch<T>().reserve(lines * padded);
    bool stopped = false;
#pragma omp for schedule(static)
    for (int64_t n = 0; n < a.a.rows; ++n) {
      if (n % kRows == 0) stopped = watch.stop();
      if (!stopped) work(a, n, inverse, padded, scratch);
    }
  }
  watch.finish();
}

bool same_logits(const ConstMatrix& a, const ConstMatrix& b) {
  return a.rows == b.rows && a.cols == b.cols && a.cols > 0 && a.dtype == b.dtype;
}

}  // namespace

void symmetric_kl_entry(const SymmetricKlArgs& a) {
  require(same_logits(a.a, a.b), "symmetric_kl: a and b must have one shape and dtype");
  if (a.a.dtype == DType::kFloat64) {
    each_row<double, SymmetricKlArgs>(a, 4, forward_row<double>);
  } else {
    each_row<float, SymmetricKlArgs>(a, 4, forward_row<float>);
  }
}

void symmetric_kl_bwd_entry(const SymmetricKlBwdArgs& a) {
  require(same_logits(a.a, a.b), "symmetric_kl_bwd: a and b must have one shape and dtype");
  if (a.a.dtype == DType::kFloat64) {
    each_row<double, SymmetricKlBwdArgs>(a, 2, backward_row<double>);
  } else {
    each_row<float, SymmetricKlBwdArgs>(a, 2, backward_row<float>);
  }
}

}  // namespace SB_ISA
}  // namespace semobridge

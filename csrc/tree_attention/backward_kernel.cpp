// tree_attention_bwd for one instruction set; see tree_attention.h for what it computes.
#include <omp.h>

#include "core/interrupt.h"
#include "core/scratch.h"
#include "core/table.h"
#include "tree_attention/scores.h"
#include "tree_attention/tree_attention.h"

namespace semobridge {
namespace SB_ISA {
namespace {

constexpr int64_t kRows = 64;  // between two looks at the watch

template <class T>
SB_INLINE T* row_of(const Matrix& m, int64_t i) {
  return static_cast<T*>(m.data) + i * m.row_stride;
}

template <class T>
SB_INLINE void add_scaled(T scale, const T* x, int64_t n, T* y) {
  constexpr int kLanes = Simd<T>::kLanes;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(y + i, load(y + i) + load(x + i) * scale);
  for (; i < n; ++i) y[i] += x[i] * scale;
}

template <class T>
SB_INLINE void clear(const Matrix& m, int64_t at, int64_t width) {
  for (int64_t i = 0; i < m.rows; ++i) {
    T* row = row_of<T>(m, i) + at;
    for (int64_t j = 0; j < width; ++j) row[j] = 0;
  }
}

// One head of one row. p and dp hold ldp numbers each.
template <class T>
SB_INLINE void row_backward(const TreeAttentionBwdArgs& a, int64_t n, int64_t at, int64_t width,
                            T root, T* p, T* dp) {
  const int32_t* path = a.paths + a.path_of[n] * a.length;
  const int64_t count = a.counts[n];
  const int64_t padded = (count + Simd<T>::kLanes - 1) / Simd<T>::kLanes * Simd<T>::kLanes;
  const T* q = row_of<T>(a.queries, n) + at;
  const T* g = row_of<T>(a.grad_out, n) + at;
  for (int64_t j = 0; j < count; ++j) {
    p[j] = head_dot(q, row_of<T>(a.keys, path[j]) + at, width) * root;
    dp[j] = head_dot(g, row_of<T>(a.values, path[j]) + at, width);
  }
  const T inverse = exponentials(p, count, padded);
  T mean = 0;
  for (int64_t j = 0; j < count; ++j) {
    p[j] *= inverse;
    mean += p[j] * dp[j];
  }
  T* grad_q = row_of<T>(a.grad_queries, n) + at;
  for (int64_t j = 0; j < count; ++j) {
    const T ds = p[j] * (dp[j] - mean) * root;
    add_scaled(ds, row_of<T>(a.keys, path[j]) + at, width, grad_q);
    add_scaled(ds, q, width, row_of<T>(a.grad_keys, path[j]) + at);
    add_scaled(p[j], g, width, row_of<T>(a.grad_values, path[j]) + at);
  }
}

template <class T>
void backward(const TreeAttentionBwdArgs& a) {
  const int64_t width = a.queries.cols / a.heads;
  const T root = T(1) / static_cast<T>(__builtin_sqrt(static_cast<double>(width)));
  const int64_t ldp = (a.length + Simd<T>::kLanes - 1) / Simd<T>::kLanes * Simd<T>::kLanes;
  const int team = a.heads < a.threads ? static_cast<int>(a.heads) : a.threads;
  Watch watch;
#pragma omp parallel num_threads(team) if (team > 1 && a.queries.rows > kRows)
  {
    T* p = thread_row_scratch<T>().reserve(2 * ldp);
#pragma omp for schedule(static)
    for (int64_t h = 0; h < a.heads; ++h) {
      const int64_t at = h * width;
      clear<T>(a.grad_queries, at, width);
      clear<T>(a.grad_keys, at, width);
      clear<T>(a.grad_values, at, width);
      for (int64_t n = 0; n < a.queries.rows; ++n) {
        if (n % kRows == 0 && watch.stop()) break;
        row_backward(a, n, at, width, root, p, p + ldp);
      }
    }
  }
  watch.finish();
}

}  // namespace

void tree_attention_bwd_entry(const TreeAttentionBwdArgs& a) {
  const DType dtype = a.queries.dtype;
  const int64_t cols = a.queries.cols, rows = a.queries.rows, keys = a.keys.rows;
  require(is_compute_dtype(dtype) && a.keys.dtype == dtype && a.values.dtype == dtype &&
              a.grad_out.dtype == dtype && a.grad_queries.dtype == dtype &&
              a.grad_keys.dtype == dtype && a.grad_values.dtype == dtype,
          "tree_attention_bwd: float32 or float64 needed, one for all");
  require(a.keys.cols == cols && a.values.cols == cols && a.grad_out.cols == cols &&
              a.grad_queries.cols == cols && a.grad_keys.cols == cols &&
              a.grad_values.cols == cols && a.grad_out.rows == rows &&
              a.grad_queries.rows == rows && a.values.rows == keys && a.grad_keys.rows == keys &&
              a.grad_values.rows == keys,
          "tree_attention_bwd: shapes do not fit");
  require(a.heads > 0 && cols % a.heads == 0 && cols > 0,
          "tree_attention_bwd: heads must divide the width");
  check_paths(a.paths, a.num_paths, a.length, a.path_of, a.counts, rows, keys);
  if (dtype == DType::kFloat64) {
    backward<double>(a);
  } else {
    backward<float>(a);
  }
}

}  // namespace SB_ISA
}  // namespace semobridge

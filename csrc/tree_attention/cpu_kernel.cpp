// tree_attention for one instruction set; see tree_attention.h for what it computes.
//
// A key's row is read once for all heads. Nodes come in the order of the sorted prompts, so the
// rows that neighbours share are still in the core's cache: the lists are followed where a gather
// would write every key and value again.
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

// o = scale · Σ_j p_j · v_j over one head's width, in registers.
template <class T>
SB_INLINE void blend(const ConstMatrix& values, const int32_t* path, const T* p, T scale,
                     int64_t count, int64_t at, int64_t width, T* o) {
  using V = typename Simd<T>::Vec;
  constexpr int kLanes = Simd<T>::kLanes;
  int64_t i = 0;
  for (; i + 4 * kLanes <= width; i += 4 * kLanes) {
    V acc[4] = {};
    for (int64_t j = 0; j < count; ++j) {
      const T* v = row_of<T>(values, path[j]) + at + i;
      for (int r = 0; r < 4; ++r) acc[r] += load(v + r * kLanes) * p[j];
    }
    for (int r = 0; r < 4; ++r) store(o + i + r * kLanes, acc[r] * scale);
  }
  for (; i + kLanes <= width; i += kLanes) {
    V acc{};
    for (int64_t j = 0; j < count; ++j) acc += load(row_of<T>(values, path[j]) + at + i) * p[j];
    store(o + i, acc * scale);
  }
  for (; i < width; ++i) {
    T acc = 0;
    for (int64_t j = 0; j < count; ++j) acc += row_of<T>(values, path[j])[at + i] * p[j];
    o[i] = acc * scale;
  }
}

template <class T>
SB_INLINE void attend_row(const TreeAttentionArgs& a, int64_t n, int64_t width, T root, int64_t ldp,
                          T* p) {
  const int32_t* path = a.paths + a.path_of[n] * a.length;
  const int64_t count = a.counts[n];
  const int64_t padded = (count + Simd<T>::kLanes - 1) / Simd<T>::kLanes * Simd<T>::kLanes;
  const T* q = row_of<T>(a.queries, n);
  for (int64_t j = 0; j < count; ++j) {
    const T* k = row_of<T>(a.keys, path[j]);
    for (int64_t h = 0; h < a.heads; ++h) {
      p[h * ldp + j] = head_dot(q + h * width, k + h * width, width) * root;
    }
  }
  T* o = static_cast<T*>(a.out.data) + n * a.out.row_stride;
  for (int64_t h = 0; h < a.heads; ++h) {
    const T scale = exponentials(p + h * ldp, count, padded);
    blend(a.values, path, p + h * ldp, scale, count, h * width, width, o + h * width);
  }
}

template <class T>
void attend(const TreeAttentionArgs& a) {
  const int64_t width = a.queries.cols / a.heads;
  const T root = T(1) / static_cast<T>(__builtin_sqrt(static_cast<double>(width)));
  const int64_t ldp = (a.length + Simd<T>::kLanes - 1) / Simd<T>::kLanes * Simd<T>::kLanes;
  const int64_t blocks = (a.queries.rows + kRows - 1) / kRows;
  const int team = blocks < a.threads ? static_cast<int>(blocks) : a.threads;
  Watch watch;
#pragma omp parallel num_threads(team) if (team > 1)
  {
    T* p = thread_row_scratch<T>().reserve(a.heads * ldp);
    // Static: neighbours, which share ancestors, stay on one core.
#pragma omp for schedule(static)
    for (int64_t block = 0; block < blocks; ++block) {
      if (watch.stop()) continue;
      const int64_t end =
          (block + 1) * kRows < a.queries.rows ? (block + 1) * kRows : a.queries.rows;
      for (int64_t n = block * kRows; n < end; ++n) attend_row(a, n, width, root, ldp, p);
    }
  }
  watch.finish();
}

}  // namespace

void tree_attention_entry(const TreeAttentionArgs& a) {
  if (a.queries.rows == 0) return;
  const DType dtype = a.queries.dtype;
  require(is_compute_dtype(dtype) && a.keys.dtype == dtype && a.values.dtype == dtype &&
              a.out.dtype == dtype,
          "tree_attention: float32 or float64 needed, one for all");
  require(a.keys.cols == a.queries.cols && a.values.cols == a.queries.cols &&
              a.out.cols == a.queries.cols && a.out.rows == a.queries.rows &&
              a.keys.rows == a.values.rows,
          "tree_attention: shapes do not fit");
  require(a.heads > 0 && a.queries.cols % a.heads == 0 && a.queries.cols > 0,
          "tree_attention: heads must divide the width");
  check_paths(a.paths, a.num_paths, a.length, a.path_of, a.counts, a.queries.rows, a.keys.rows);
  if (dtype == DType::kFloat64) {
    attend<double>(a);
  } else {
    attend<float>(a);
  }
}

}  // namespace SB_ISA
}  // namespace semobridge

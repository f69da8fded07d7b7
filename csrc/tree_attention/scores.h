// What the forward and the backward kernel of tree_attention share: dot products of a head, its
// softmax, and the check of the lists.
#pragma once
#include "core/table.h"
#include "core/vexp.h"

namespace semobridge {
namespace SB_ISA {
namespace {

template <class T>
constexpr T kLowest = sizeof(T) == 8 ? T(-1e300) : T(-1e38);

template <class T>
SB_INLINE const T* row_of(const ConstMatrix& m, int64_t i) {
  return static_cast<const T*>(m.data) + i * m.row_stride;
}

template <class T>
SB_INLINE T head_dot(const T* a, const T* b, int64_t n) {
  constexpr int kLanes = Simd<T>::kLanes;
  typename Simd<T>::Vec first{}, second{};
  int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    first += load(a + i) * load(b + i);
    second += load(a + i + kLanes) * load(b + i + kLanes);
  }
  for (; i + kLanes <= n; i += kLanes) first += load(a + i) * load(b + i);
  T sum = sum_lanes<T>(first + second);
  for (; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

// Scores of one head become exp(score − largest); returns 1 / their sum. `padded` is a multiple of
// the lanes.
template <class T>
SB_INLINE T exponentials(T* p, int64_t count, int64_t padded) {
  using V = typename Simd<T>::Vec;
  constexpr int kLanes = Simd<T>::kLanes;
  for (int64_t j = count; j < padded; ++j) p[j] = kLowest<T>;  // finite: infinity would give NaN
  V top = V{} + kLowest<T>;
  for (int64_t j = 0; j < padded; j += kLanes) {
    const V v = load(p + j);
    top = v > top ? v : top;
  }
  const T most = max_lanes<T>(top);
  V sum{};
  for (int64_t j = 0; j < padded; j += kLanes) {
    const V e = vexp<T>(load(p + j) - most);
    sum += e;
    store(p + j, e);
  }
  return T(1) / sum_lanes<T>(sum);
}

SB_INLINE void check_paths(const int32_t* paths, int64_t num_paths, int64_t length,
                           const int32_t* path_of, const int32_t* counts, int64_t rows,
                           int64_t keys) {
  require(paths != nullptr && path_of != nullptr && counts != nullptr,
          "tree_attention: paths needed");
  for (int64_t i = 0; i < num_paths * length; ++i) {
    require(paths[i] >= 0 && paths[i] < keys, "tree_attention: a path leaves the rows");
  }
  for (int64_t n = 0; n < rows; ++n) {
    require(path_of[n] >= 0 && path_of[n] < num_paths && counts[n] > 0 && counts[n] <= length,
            "tree_attention: a row lies beyond the paths");
  }
}

}  // namespace
}  // namespace SB_ISA
}  // namespace semobridge

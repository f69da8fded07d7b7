// The norm of a row of whole panels.
#pragma once
#include "core/simd.h"

namespace semobridge {
namespace SB_ISA {
namespace {

// Sum of squares of `panels` x kPanel values: kPanel running sums, then one fixed tree, so that the
// value does not depend on how the row was computed.
template <class T>
SB_INLINE T sum_squares(const T* y, int64_t panels) {
  using V = typename Simd<T>::Vec;
  constexpr int kLanes = Simd<T>::kLanes;
  constexpr int kV = kPanel / kLanes;
  V acc[kV];
#pragma GCC unroll 16
  for (int v = 0; v < kV; ++v) acc[v] = V{};
  for (int64_t p = 0; p < panels; ++p) {
#pragma GCC unroll 16
    for (int v = 0; v < kV; ++v) {
      const V x = load(y + p * kPanel + v * kLanes);
      acc[v] += x * x;
    }
  }
  T lane[kPanel];
  for (int v = 0; v < kV; ++v) store(lane + v * kLanes, acc[v]);
  for (int width = kPanel / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lane[i] += lane[i + width];
  }
  return lane[0];
}

template <class T>
struct RowNorm {
  T norm;     // ‖y‖ as it came
  T inverse;  // what y must now be multiplied by to have unit length; 0 for a zero row
};

// The sum of squares may overflow or underflow where the norm does not: then the row is divided by
// its largest entry and measured again.
template <class T>
SB_INLINE RowNorm<T> measure_row(T* y, int64_t panels) {
  const T tiny = sizeof(T) == 8 ? T(1e-280) : T(1e-30), huge = sizeof(T) == 8 ? T(1e300) : T(1e37);
  T squares = sum_squares(y, panels);
  if (squares > tiny && squares < huge) {
    const T norm = static_cast<T>(__builtin_sqrt(squares));
    return {norm, T(1) / norm};
  }
  if (squares != squares) return {squares, squares};  // a NaN anywhere makes the whole row NaN
  T largest = 0;
  for (int64_t i = 0; i < panels * kPanel; ++i) {
    const T a = y[i] < 0 ? -y[i] : y[i];
    if (a > largest) largest = a;
  }
  if (largest == 0) return {T(0), T(0)};
  for (int64_t i = 0; i < panels * kPanel; ++i) y[i] /= largest;
  const T norm = static_cast<T>(__builtin_sqrt(sum_squares(y, panels)));
  return {largest * norm, T(1) / norm};
}

}  // namespace
}  // namespace SB_ISA
}  // namespace semobridge

// The norm of a row held by one warp.
#pragma once
#include "core/device.cuh"

namespace semobridge {

// ‖y‖ of the values that `at(i)` gives for i in 0..cols, the same in every lane. Divided by the
// largest entry first: squares of large features overflow before the norm does.
template <class T, class At>
__device__ __forceinline__ T warp_norm(int64_t cols, At at) {
  const int lane = threadIdx.x % kWarp;
  T largest = 0;
  for (int64_t i = lane; i < cols; i += kWarp) {
    const T value = at(i), magnitude = value < 0 ? -value : value;
    largest = magnitude > largest ? magnitude : largest;
  }
  largest = warp_max(largest);
  const T divisor = largest > 0 ? largest : T(1);
  T squares = 0;
  for (int64_t i = lane; i < cols; i += kWarp) {
    const T value = at(i) / divisor;
    squares += value * value;
  }
  return sqrt(warp_sum(squares)) * divisor;
}

// What a row of that norm is multiplied by; 0 for a zero row, NaN for a row that holds one.
template <class T>
__device__ __forceinline__ T unit_factor(T norm, T scale) {
  return norm == 0 ? T(0) : scale / norm;
}

}  // namespace semobridge

// Float32 numbers as two of float16 that add up to them: products of these, which are exact in
// float32, run on tensor cores and keep 22 bits of an entry.
//
// float16 ends at 65504 and thins out below 2^-14, so what is cut is scaled by powers of two that
// bring its largest entry to 2^14: entries down to a 2^18th of that keep all their bits.
#pragma once
#include "core/device.cuh"

namespace semobridge {

constexpr int kHalfTop = 14;  // exponent of the largest entry
constexpr int kMostScale = 126;

// What brings numbers of at most `bound` to below 2^15; 1 where there are none, or they have no
// bound.
__device__ __forceinline__ float half_scale(float bound) {
  if (!(bound > 0) || !(bound < INFINITY)) return 1.0f;
  const int exponent = kHalfTop - ilogbf(bound);
  return ldexpf(1.0f, exponent < kMostScale ? exponent : kMostScale);
}

// Infinity becomes NaN: its remainder is none.
__device__ __forceinline__ void cut(float value, __half* high, __half* low) {
  *high = __float2half_rn(value);
  *low = __float2half_rn(value - __half2float(*high));
}

// kStep values as pairs, high and low side by side, in the bytes of as many floats.
template <int kStep>
__device__ __forceinline__ void store_halves(const float (&from)[kStep], float* to) {
  Pack<__half, 2 * kStep> pack;
#pragma unroll
  for (int j = 0; j < kStep; ++j) cut(from[j], &pack.at[2 * j], &pack.at[2 * j + 1]);
  *reinterpret_cast<Pack<__half, 2 * kStep>*>(to) = pack;
}

}  // namespace semobridge

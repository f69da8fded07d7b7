// AdamW on one value, as torch.optim.AdamW takes it at step t: the CPU's kernels and CUDA's alike.
//
//   m ← m + (1 − β1)(g − m)      v ← β2·v + (1 − β2)·g²
//   p ← keep·p − rate·m/(√v/correction + ε)
//
// Internal linkage: the CPU's kernels are compiled once per instruction set, and the linker must
// not take one set's code for another's.
#pragma once

#if defined(__CUDACC__)
#define SB_COMMON static __device__ __forceinline__
#else
#define SB_COMMON static inline __attribute__((always_inline))
#endif

namespace semobridge {

template <class T>
struct AdamwFactors {
  T keep = 1;        // 1 − lr·decay
  T rate = 0;        // lr/(1 − β1^t)
  T correction = 1;  // √(1 − β2^t)
  T rest1 = 0;       // 1 − β1
  T beta2 = 0;
  T rest2 = 0;  // 1 − β2
  T epsilon = 0;
};

// Factors that no step changes, rounded once from float64 as torch's are.
template <class T>
static inline AdamwFactors<T> adamw_factors(double keep, double beta1, double beta2,
                                            double epsilon) {
  AdamwFactors<T> f;
  f.keep = static_cast<T>(keep);
  f.rest1 = static_cast<T>(1 - beta1);
  f.beta2 = static_cast<T>(beta2);
  f.rest2 = static_cast<T>(1 - beta2);
  f.epsilon = static_cast<T>(epsilon);
  return f;
}

#if defined(__CUDACC__)
SB_COMMON float square_root(float x) { return sqrtf(x); }
#else
SB_COMMON float square_root(float x) { return __builtin_sqrtf(x); }
SB_COMMON double square_root(double x) { return __builtin_sqrt(x); }
#endif

// The new value; both moments are updated.
template <class T>
SB_COMMON T adamw_value(const AdamwFactors<T>& f, T gradient, T value, T& first, T& second) {
  first += f.rest1 * (gradient - first);
  second = f.beta2 * second + f.rest2 * (gradient * gradient);
  return f.keep * value - f.rate * first / (square_root(second) / f.correction + f.epsilon);
}

}  // namespace semobridge

// Row-wise pieces of a transformer: layer norm and its input gradient, activations with their
// derivative, dot products.
#pragma once
#include "core/activation.h"
#include "core/simd.h"

namespace semobridge {
namespace SB_ISA {
namespace {

template <class T>
SB_INLINE T dot(const T* a, const T* b, int64_t n) {
  typename Simd<T>::Vec acc = {};
  int64_t i = 0;
  for (; i + Simd<T>::kLanes <= n; i += Simd<T>::kLanes) acc += load(a + i) * load(b + i);
  T sum = sum_lanes<T>(acc);
  for (; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

template <class T>
SB_INLINE void axpy(T scale, const T* x, int64_t n, T* y) {
  int64_t i = 0;
  for (; i + Simd<T>::kLanes <= n; i += Simd<T>::kLanes) {
    store(y + i, load(y + i) + load(x + i) * scale);
  }
  for (; i < n; ++i) y[i] += x[i] * scale;
}

template <class T>
struct RowStats {
  T mean, rstd;
};

// y = (x − mean)·rstd·weight + bias, with the biased variance, in two passes.
template <class T>
SB_INLINE RowStats<T> layer_norm(const T* x, const T* weight, const T* bias, double eps, int64_t n,
                                 T* y) {
  using V = typename Simd<T>::Vec;
  constexpr int kLanes = Simd<T>::kLanes;
  const int64_t whole = n / kLanes * kLanes;
  V acc = {};
  for (int64_t i = 0; i < whole; i += kLanes) acc += load(x + i);
  T sum = sum_lanes<T>(acc);
  for (int64_t i = whole; i < n; ++i) sum += x[i];
  const T mean = sum / static_cast<T>(n);
  acc = V{};
  for (int64_t i = 0; i < whole; i += kLanes) {
    const V d = load(x + i) - mean;
    acc += d * d;
  }
  T squares = sum_lanes<T>(acc);
  for (int64_t i = whole; i < n; ++i) squares += (x[i] - mean) * (x[i] - mean);
  const T variance = squares / static_cast<T>(n) + static_cast<T>(eps);
  const T rstd = T(1) / static_cast<T>(__builtin_sqrt(variance));
  for (int64_t i = 0; i < n; ++i) y[i] = (x[i] - mean) * rstd * weight[i] + bias[i];
  return {mean, rstd};
}

// With u = grad_y·weight and x̂ = (x − mean)·rstd:  grad_x = rstd·(u − mean(u) − x̂·mean(u·x̂));
// added to `out`, or stored with `add` false.
template <class T>
SB_INLINE void layer_norm_backward(const T* x, const T* grad_y, const T* weight, RowStats<T> s,
                                   int64_t n, const T* residual, T* out) {
  using V = typename Simd<T>::Vec;
  constexpr int kLanes = Simd<T>::kLanes;
  const int64_t whole = n / kLanes * kLanes;
  V sum_u = {}, sum_ux = {};
  for (int64_t i = 0; i < whole; i += kLanes) {
    const V u = load(grad_y + i) * load(weight + i);
    sum_u += u;
    sum_ux += u * ((load(x + i) - s.mean) * s.rstd);
  }
  T total_u = sum_lanes<T>(sum_u), total_ux = sum_lanes<T>(sum_ux);
  for (int64_t i = whole; i < n; ++i) {
    const T u = grad_y[i] * weight[i];
    total_u += u;
    total_ux += u * ((x[i] - s.mean) * s.rstd);
  }
  const T mean_u = total_u / static_cast<T>(n), mean_ux = total_ux / static_cast<T>(n);
  for (int64_t i = 0; i < n; ++i) {
    const T hat = (x[i] - s.mean) * s.rstd;
    const T g = (grad_y[i] * weight[i] - mean_u - hat * mean_ux) * s.rstd;
    out[i] = residual == nullptr ? g : residual[i] + g;
  }
}

typedef int32_t IntVec __attribute__((vector_size(SB_VEC_BYTES)));

// eˣ to about 1 ulp; below −87.3 it stays at the smallest normal number, above 88.3 at the largest
// power. Cody and Waite's reduction; the polynomial is the Taylor series to degree 7 on |r| ≤
// ln2/2.
SB_INLINE Simd<float>::Vec exp_vec(Simd<float>::Vec x) {
  using V = Simd<float>::Vec;
  x = x < -87.0f ? V{} - 87.0f : x;  // written so that NaN passes
  x = x > 88.0f ? V{} + 88.0f : x;
  const V shifted = x * 1.44269504f + 12582912.0f;  // 1.5·2²³: the sum's low bits are the integer
  const V n = shifted - 12582912.0f;
  V r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  V p = V{} + 1.0f / 5040;
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const IntVec power = ((IntVec)shifted - 0x4b400000 + 127) << 23;
  return p * (V)power;
}

SB_INLINE Simd<double>::Vec exp_vec(Simd<double>::Vec x) {
  for (int i = 0; i < Simd<double>::kLanes; ++i) x[i] = __builtin_exp(x[i]);
  return x;
}

// Φ(x), the normal distribution function, and e = exp(−x²/2). Float: with z = |x|/√2 and
// t = 1/(1 + z/2), erfcx(z) = t·p(t); p was fitted to 6e-8 relative on z in [0, 9.5].
SB_INLINE void normal_cdf(Simd<float>::Vec x, Simd<float>::Vec* cdf, Simd<float>::Vec* e) {
  using V = Simd<float>::Vec;
  const V magnitude = (V)((IntVec)x & 0x7fffffff);
  const V t = 1.0f / (magnitude * 0.353553391f + 1.0f);
  V p = V{} - 0.05889064818620682f;
  p = p * t + 0.2837013304233551f;
  p = p * t - 0.4853823482990265f;
  p = p * t + 0.2759765684604645f;
  p = p * t - 0.025176573544740677f;
  p = p * t + 0.20206935703754425f;
  p = p * t + 0.24326112866401672f;
  p = p * t + 0.2823534607887268f;
  p = p * t + 0.28208768367767334f;
  *e = exp_vec(x * x * -0.5f);
  const V tail = 0.5f * *e * t * p;
  *cdf = x > 0.0f ? 1.0f - tail : tail;
}

SB_INLINE void normal_cdf(Simd<double>::Vec x, Simd<double>::Vec* cdf, Simd<double>::Vec* e) {
  for (int i = 0; i < Simd<double>::kLanes; ++i) {
    (*cdf)[i] = 0.5 * __builtin_erfc(-x[i] * 0.70710678118654752440);
    (*e)[i] = __builtin_exp(-0.5 * x[i] * x[i]);
  }
}

// h becomes act(h), slope act′(h).
//   gelu        h·Φ(h)                           Φ + h·φ
//   quick_gelu  h·σ(s), s = 1.702h               σ + h·σ(1 − σ)·s′
//   gelu_tanh   the same with s = √(8/π)·(h + 0.044715h³)
template <class T>
SB_INLINE void activate(Activation kind, int64_t n, T* h, T* slope) {
  using V = typename Simd<T>::Vec;
  constexpr int kLanes = Simd<T>::kLanes;
  for (int64_t i = 0; i < n; i += kLanes) {  // rows are padded to whole panels
    const V x = load(h + i);
    if (kind == Activation::kGelu) {
      V cdf, e;
      normal_cdf(x, &cdf, &e);
      store(h + i, x * cdf);
      store(slope + i, cdf + x * e * T(0.39894228040143267794));
      continue;
    }
    V s = x * T(1.702), ds = V{} + T(1.702);
    if (kind == Activation::kGeluTanh) {
      const T c = T(1.59576912160573071176);
      s = (x + x * x * x * T(0.044715)) * c;
      ds = (x * x * T(0.134145) + T(1)) * c;
    }
    const V sigma = T(1) / (exp_vec(V{} - s) + T(1));
    store(h + i, x * sigma);
    store(slope + i, sigma + x * sigma * (T(1) - sigma) * ds);
  }
}

}  // namespace
}  // namespace SB_ISA
}  // namespace semobridge

// Vectors and element conversions for one instruction set.
//
// Compiled once per set: SB_ISA names the namespace, SB_VEC_BYTES the vector width. Everything here
// is in an unnamed namespace and no std template is used, because a template instantiated with
// AVX-512 flags could be the copy that the linker keeps for all sets, and then crash an older
// processor.
#pragma once
#include <cstddef>
#include <cstdint>

#include "core/view.h"
#if defined(__F16C__) || defined(__SSE2__)
#include <immintrin.h>
#endif

#define SB_INLINE static inline __attribute__((always_inline))

namespace semobridge {
namespace SB_ISA {
namespace {

template <class T>
struct Simd {
  typedef T Vec __attribute__((vector_size(SB_VEC_BYTES)));
  static constexpr int kLanes = SB_VEC_BYTES / sizeof(T);
};

template <class T>
SB_INLINE typename Simd<T>::Vec load(const T* p) {
  typename Simd<T>::Vec v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}

template <class T>
SB_INLINE void store(T* p, typename Simd<T>::Vec v) {
  __builtin_memcpy(p, &v, sizeof(v));
}

// Elements of rows as they come from outside: a row of a mapped file may begin at any byte.
typedef float LooseFloat __attribute__((aligned(1), may_alias));
typedef double LooseDouble __attribute__((aligned(1), may_alias));
typedef uint16_t LooseHalf __attribute__((aligned(1), may_alias));

// Sum over kLanes lanes in one fixed tree.
template <class T>
SB_INLINE T sum_lanes(typename Simd<T>::Vec v) {
  T lane[Simd<T>::kLanes];
  store(lane, v);
  for (int width = Simd<T>::kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lane[i] += lane[i + width];
  }
  return lane[0];
}

template <class T>
SB_INLINE T max_lanes(typename Simd<T>::Vec v) {
  T lane[Simd<T>::kLanes];
  store(lane, v);
  T most = lane[0];
  for (int i = 1; i < Simd<T>::kLanes; ++i) most = lane[i] > most ? lane[i] : most;
  return most;
}

SB_INLINE float bits_to_float(uint32_t u) {
  float f;
  __builtin_memcpy(&f, &u, 4);
  return f;
}

SB_INLINE uint32_t float_to_bits(float f) {
  uint32_t u;
  __builtin_memcpy(&u, &f, 4);
  return u;
}

SB_INLINE float bf16_to_float(uint16_t h) { return bits_to_float(static_cast<uint32_t>(h) << 16); }

SB_INLINE uint16_t float_to_bf16(float f) {
  const uint32_t u = float_to_bits(f);
  const uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;  // to nearest, ties to even
  const bool nan = (u & 0x7fffffffu) > 0x7f800000u;  // rounding could carry it to inf
  return static_cast<uint16_t>(nan ? (u >> 16) | 0x40u : rounded);
}

#if defined(__F16C__)
SB_INLINE float fp16_to_float(uint16_t h) { return _cvtsh_ss(h); }
SB_INLINE uint16_t float_to_fp16(float f) { return _cvtss_sh(f, _MM_FROUND_TO_NEAREST_INT); }
#else
SB_INLINE float fp16_to_float(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
  const uint32_t rest = h & 0x7fffu;
  if (rest >= 0x7c00u) return bits_to_float(sign | 0x7f800000u | ((rest & 0x3ffu) << 13));
  if (rest >= 0x0400u) return bits_to_float(sign | ((rest << 13) + 0x38000000u));
  const float magnitude = static_cast<float>(rest) * 0x1p-24f;  // subnormal: exact in float32
  return bits_to_float(sign | float_to_bits(magnitude));
}

SB_INLINE uint16_t float_to_fp16(float f) {
  const uint32_t u = float_to_bits(f);
  const uint16_t sign = static_cast<uint16_t>((u >> 16) & 0x8000u);
  const uint32_t a = u & 0x7fffffffu;
  if (a > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (a >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // rounds to 65536 or more
  if (a < 0x38800000u) {  // subnormal half: adding 0.5 leaves the rounded value in the low bits
    return static_cast<uint16_t>(sign | (float_to_bits(bits_to_float(a) + 0.5f) - 0x3f000000u));
  }
  return static_cast<uint16_t>(sign | ((a + 0xc8000fffu + ((a >> 13) & 1u)) >> 13));
}
#endif

// Widens n elements of any dtype to the compute type.
template <class T>
SB_INLINE void widen(const void* src, DType dtype, int64_t n, T* __restrict dst) {
  switch (dtype) {
    case DType::kFloat32: {
      const LooseFloat* s = static_cast<const LooseFloat*>(src);
      for (int64_t i = 0; i < n; ++i) dst[i] = static_cast<T>(s[i]);
      return;
    }
    case DType::kFloat64: {
      const LooseDouble* s = static_cast<const LooseDouble*>(src);
      for (int64_t i = 0; i < n; ++i) dst[i] = static_cast<T>(s[i]);
      return;
    }
    case DType::kBFloat16: {
      const LooseHalf* s = static_cast<const LooseHalf*>(src);
      for (int64_t i = 0; i < n; ++i) dst[i] = static_cast<T>(bf16_to_float(s[i]));
      return;
    }
    case DType::kFloat16: {
      const LooseHalf* s = static_cast<const LooseHalf*>(src);
      int64_t i = 0;
#if defined(__F16C__)
      for (; i + 8 <= n; i += 8) {
        float wide[8];
        _mm256_storeu_ps(wide,
                         _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(s + i))));
        for (int j = 0; j < 8; ++j) dst[i + j] = static_cast<T>(wide[j]);
      }
#endif
      for (; i < n; ++i) dst[i] = static_cast<T>(fp16_to_float(s[i]));
      return;
    }
  }
}

// Writes n values times `scale` in the output's dtype.
template <class T>
SB_INLINE void narrow(const T* __restrict src, T scale, int64_t n, DType dtype, void* dst) {
  switch (dtype) {
    case DType::kFloat32: {
      float* d = static_cast<float*>(dst);
      for (int64_t i = 0; i < n; ++i) d[i] = static_cast<float>(src[i] * scale);
      return;
    }
    case DType::kFloat64: {
      double* d = static_cast<double*>(dst);
      for (int64_t i = 0; i < n; ++i) d[i] = static_cast<double>(src[i] * scale);
      return;
    }
    case DType::kBFloat16: {
      uint16_t* d = static_cast<uint16_t*>(dst);
      for (int64_t i = 0; i < n; ++i) d[i] = float_to_bf16(static_cast<float>(src[i] * scale));
      return;
    }
    case DType::kFloat16: {
      uint16_t* d = static_cast<uint16_t*>(dst);
      int64_t i = 0;
#if defined(__F16C__)
      for (; i + 8 <= n; i += 8) {
        float wide[8];
        for (int j = 0; j < 8; ++j) wide[j] = static_cast<float>(src[i + j] * scale);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(d + i),
                         _mm256_cvtps_ph(_mm256_loadu_ps(wide), _MM_FROUND_TO_NEAREST_INT));
      }
#endif
      for (; i < n; ++i) d[i] = float_to_fp16(static_cast<float>(src[i] * scale));
      return;
    }
  }
}

}  // namespace
}  // namespace SB_ISA
}  // namespace semobridge

// Which of kPanel scores pass a threshold, as a bit mask; NaN never passes.
#pragma once
#include "core/simd.h"

namespace semobridge {
namespace SB_ISA {
namespace {

static_assert(kPanel == 32, "one mask bit per column of a panel");

template <bool kOrEqual, class T>
SB_INLINE uint32_t pass_mask(const T* p, T threshold) {
  uint32_t mask = 0;
#if SB_VEC_BYTES == 64 && defined(__AVX512F__)
  constexpr int kOp = kOrEqual ? _CMP_GE_OQ : _CMP_GT_OQ;
  if constexpr (sizeof(T) == 4) {
    const __m512 t = _mm512_set1_ps(threshold);
    for (int i = 0; i < 2; ++i) {
      mask |= static_cast<uint32_t>(_mm512_cmp_ps_mask(_mm512_loadu_ps(p + 16 * i), t, kOp))
              << (16 * i);
    }
  } else {
    const __m512d t = _mm512_set1_pd(threshold);
    for (int i = 0; i < 4; ++i) {
      mask |= static_cast<uint32_t>(_mm512_cmp_pd_mask(_mm512_loadu_pd(p + 8 * i), t, kOp))
              << (8 * i);
    }
  }
#elif SB_VEC_BYTES == 32 && defined(__AVX2__)
  constexpr int kOp = kOrEqual ? _CMP_GE_OQ : _CMP_GT_OQ;
  if constexpr (sizeof(T) == 4) {
    const __m256 t = _mm256_set1_ps(threshold);
    for (int i = 0; i < 4; ++i) {
      const __m256 pass = _mm256_cmp_ps(_mm256_loadu_ps(p + 8 * i), t, kOp);
      mask |= static_cast<uint32_t>(_mm256_movemask_ps(pass)) << (8 * i);
    }
  } else {
    const __m256d t = _mm256_set1_pd(threshold);
    for (int i = 0; i < 8; ++i) {
      const __m256d pass = _mm256_cmp_pd(_mm256_loadu_pd(p + 4 * i), t, kOp);
      mask |= static_cast<uint32_t>(_mm256_movemask_pd(pass)) << (4 * i);
    }
  }
#elif defined(__SSE2__)
  if constexpr (sizeof(T) == 4) {
    const __m128 t = _mm_set1_ps(threshold);
    for (int i = 0; i < 8; ++i) {
      const __m128 x = _mm_loadu_ps(p + 4 * i);
      const __m128 pass = kOrEqual ? _mm_cmpge_ps(x, t) : _mm_cmpgt_ps(x, t);
      mask |= static_cast<uint32_t>(_mm_movemask_ps(pass)) << (4 * i);
    }
  } else {
    const __m128d t = _mm_set1_pd(threshold);
    for (int i = 0; i < 16; ++i) {
      const __m128d x = _mm_loadu_pd(p + 2 * i);
      const __m128d pass = kOrEqual ? _mm_cmpge_pd(x, t) : _mm_cmpgt_pd(x, t);
      mask |= static_cast<uint32_t>(_mm_movemask_pd(pass)) << (2 * i);
    }
  }
#else
  for (int i = 0; i < 32; ++i) {
    const bool pass = kOrEqual ? p[i] >= threshold : p[i] > threshold;
    mask |= static_cast<uint32_t>(pass) << i;
  }
#endif
  return mask;
}

// Which of kPanel values are below a threshold; NaN never is.
SB_INLINE uint32_t below_mask(const float* p, float threshold) {
  uint32_t mask = 0;
#if SB_VEC_BYTES == 64 && defined(__AVX512F__)
  const __m512 t = _mm512_set1_ps(threshold);
  for (int i = 0; i < 2; ++i) {
    mask |= static_cast<uint32_t>(_mm512_cmp_ps_mask(_mm512_loadu_ps(p + 16 * i), t, _CMP_LT_OQ))
            << (16 * i);
  }
#elif SB_VEC_BYTES == 32 && defined(__AVX2__)
  const __m256 t = _mm256_set1_ps(threshold);
  for (int i = 0; i < 4; ++i) {
    const __m256 below = _mm256_cmp_ps(_mm256_loadu_ps(p + 8 * i), t, _CMP_LT_OQ);
    mask |= static_cast<uint32_t>(_mm256_movemask_ps(below)) << (8 * i);
  }
#elif defined(__SSE2__)
  const __m128 t = _mm_set1_ps(threshold);
  for (int i = 0; i < 8; ++i) {
    mask |= static_cast<uint32_t>(_mm_movemask_ps(_mm_cmplt_ps(_mm_loadu_ps(p + 4 * i), t)))
            << (4 * i);
  }
#else
  for (int i = 0; i < 32; ++i) mask |= static_cast<uint32_t>(p[i] < threshold) << i;
#endif
  return mask;
}

// The first n columns of a panel.
SB_INLINE uint32_t first_columns(int64_t n) { return n >= 32 ? ~0u : (1u << n) - 1u; }

}  // namespace
}  // namespace SB_ISA
}  // namespace semobridge

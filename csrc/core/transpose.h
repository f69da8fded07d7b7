// Square transposes in registers, and keys laid out as panels for the tile product.
#pragma once
#include <utility>

#include "core/simd.h"

namespace semobridge {
namespace SB_ISA {
namespace {

template <class T>
struct LaneIndex;
template <>
struct LaneIndex<float> {
  typedef int32_t Vec __attribute__((vector_size(SB_VEC_BYTES)));
};
template <>
struct LaneIndex<double> {
  typedef int64_t Vec __attribute__((vector_size(SB_VEC_BYTES)));
};

// Exchanges the off-diagonal blocks of width H between two rows; lanes past kLanes name the second.
// (std::integer_sequence is only a type here: no function of it is ever emitted.)
template <class T, int H, int... I>
SB_INLINE void exchange(typename Simd<T>::Vec& a, typename Simd<T>::Vec& b,
                        std::integer_sequence<int, I...>) {
  constexpr int kLanes = Simd<T>::kLanes;
#if defined(__clang__)
  const auto top = __builtin_shufflevector(a, b, ((I & H) ? kLanes + I - H : I)...);
  const auto low = __builtin_shufflevector(a, b, ((I & H) ? kLanes + I : I + H)...);
#else
  using Index = typename LaneIndex<T>::Vec;
  const auto top = __builtin_shuffle(a, b, Index{((I & H) ? kLanes + I - H : I)...});
  const auto low = __builtin_shuffle(a, b, Index{((I & H) ? kLanes + I : I + H)...});
#endif
  a = top;
  b = low;
}

template <class T, int H>
SB_INLINE void transpose_step(typename Simd<T>::Vec* v) {
  constexpr int kLanes = Simd<T>::kLanes;
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    if ((i & H) == 0) exchange<T, H>(v[i], v[i + H], std::make_integer_sequence<int, kLanes>{});
  }
}

// v[i][j] <-> v[j][i] for kLanes vectors.
template <class T>
SB_INLINE void transpose(typename Simd<T>::Vec* v) {
  constexpr int kLanes = Simd<T>::kLanes;
  if constexpr (kLanes > 8) transpose_step<T, 8>(v);
  if constexpr (kLanes > 4) transpose_step<T, 4>(v);
  if constexpr (kLanes > 2) transpose_step<T, 2>(v);
  transpose_step<T, 1>(v);
}

// kLanes elements of dtype D, widened.
template <class T, DType D>
SB_INLINE typename Simd<T>::Vec load_wide(const char* src) {
  constexpr int kLanes = Simd<T>::kLanes;
  if constexpr ((D == DType::kFloat32 && sizeof(T) == 4) ||
                (D == DType::kFloat64 && sizeof(T) == 8)) {
    typename Simd<T>::Vec whole;
    __builtin_memcpy(&whole, src, sizeof(whole));
    return whole;
  } else if constexpr (D == DType::kBFloat16 && sizeof(T) == 4) {
    typedef uint16_t Half __attribute__((vector_size(SB_VEC_BYTES / 2)));
    typedef uint32_t Wide __attribute__((vector_size(SB_VEC_BYTES)));
    Half half;
    __builtin_memcpy(&half, src, sizeof(half));
    return reinterpret_cast<typename Simd<T>::Vec>(__builtin_convertvector(half, Wide) << 16);
#if SB_VEC_BYTES == 64 && defined(__AVX512F__)
  } else if constexpr (D == DType::kFloat16 && sizeof(T) == 4) {
    // The zeroing form: the plain one reads an undefined vector, which g++ 12 warns about.
    return reinterpret_cast<typename Simd<T>::Vec>(
        _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(src))));
#elif SB_VEC_BYTES == 32 && defined(__F16C__)
  } else if constexpr (D == DType::kFloat16 && sizeof(T) == 4) {
    return reinterpret_cast<typename Simd<T>::Vec>(
        _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(src))));
#endif
  } else {
    T line[kLanes];
    widen(src, D, kLanes, line);
    return load(line);
  }
}

// Rows [row0, row0 + count) of x, or index[row0 ..] of them, count <= kPanel, as one panel
// [K][kPanel]; the columns past count are zero.
template <class T, DType D>
SB_INLINE void pack_panel_of(const ConstMatrix& x, const int64_t* index, int64_t row0,
                             int64_t count, T* __restrict panel) {
  using V = typename Simd<T>::Vec;
  constexpr int kLanes = Simd<T>::kLanes;
  constexpr int64_t kBytes = dtype_size(D);
  const int64_t k_whole = x.cols / kLanes * kLanes;
  for (int64_t col = 0; col < kPanel; col += kLanes) {
    const char* row[kLanes];
    for (int j = 0; j < kLanes; ++j) {
      row[j] = nullptr;
      if (col + j >= count) continue;
      const int64_t r = index != nullptr ? index[row0 + col + j] : row0 + col + j;
      row[j] = static_cast<const char*>(x.data) + r * x.row_stride * kBytes;
    }
    const bool whole = col + kLanes <= count;
    for (int64_t k = 0; k < k_whole; k += kLanes) {
      V v[kLanes];
      if (whole) {
#pragma GCC unroll 16
        for (int j = 0; j < kLanes; ++j) v[j] = load_wide<T, D>(row[j] + k * kBytes);
      } else {
        for (int j = 0; j < kLanes; ++j) {
          v[j] = row[j] != nullptr ? load_wide<T, D>(row[j] + k * kBytes) : V{};
        }
      }
      transpose<T>(v);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) store(panel + (k + i) * kPanel + col, v[i]);
    }
    for (int j = 0; j < kLanes; ++j) {
      T line[kLanes] = {};
      if (row[j] != nullptr) widen(row[j] + k_whole * kBytes, D, x.cols - k_whole, line);
      for (int64_t k = k_whole; k < x.cols; ++k) panel[k * kPanel + col + j] = line[k - k_whole];
    }
  }
}

template <class T>
void pack_panel(const ConstMatrix& x, const int64_t* index, int64_t row0, int64_t count, T* panel) {
  switch (x.dtype) {
    case DType::kFloat32:
      return pack_panel_of<T, DType::kFloat32>(x, index, row0, count, panel);
    case DType::kFloat64:
      return pack_panel_of<T, DType::kFloat64>(x, index, row0, count, panel);
    case DType::kFloat16:
      return pack_panel_of<T, DType::kFloat16>(x, index, row0, count, panel);
    case DType::kBFloat16:
      return pack_panel_of<T, DType::kBFloat16>(x, index, row0, count, panel);
  }
}

}  // namespace
}  // namespace SB_ISA
}  // namespace semobridge

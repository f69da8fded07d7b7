// Products with stored weights: panels in float32, float64, float16 or bfloat16, any number of
// rows.
//
// Few rows are bound by reading the weights, so 16-bit panels are widened in registers; many rows
// are bound by arithmetic, so a panel's chunk is widened once and serves all tiles. Both add up the
// same chain of fused multiply-adds over k, so that a row's result does not depend on the rows
// beside it.
#pragma once
#include "core/scratch.h"
#include "core/tile.h"

namespace semobridge {
namespace SB_ISA {
namespace {

struct Half {
  uint16_t bits;
};
struct Brain {
  uint16_t bits;
};

typedef uint32_t WideBits __attribute__((vector_size(SB_VEC_BYTES)));
typedef uint16_t NarrowBits __attribute__((vector_size(SB_VEC_BYTES / 2)));

SB_INLINE Simd<float>::Vec widen_vec(const float* p) { return load(p); }
SB_INLINE Simd<double>::Vec widen_vec(const double* p) { return load(p); }
SB_INLINE WideBits zero_extend(const void* p) {
  NarrowBits n;
  __builtin_memcpy(&n, p, sizeof(n));
  return __builtin_convertvector(n, WideBits);
}
SB_INLINE Simd<float>::Vec widen_vec(const Brain* p) {
  return (Simd<float>::Vec)(zero_extend(p) << 16);
}
SB_INLINE Simd<float>::Vec widen_vec(const Half* p) {
#if SB_VEC_BYTES == 64
  return (Simd<float>::Vec)_mm512_maskz_cvtph_ps(
      0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__F16C__)
  return (Simd<float>::Vec)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  // Exponent and mantissa move up and the bias is multiplied in: exact for all finite values.
  const WideBits h = zero_extend(p);
  const Simd<float>::Vec magnitude = (Simd<float>::Vec)((h & 0x7fffu) << 13) * 0x1p112f;
  return (Simd<float>::Vec)((WideBits)magnitude | ((h & 0x8000u) << 16));
#endif
}

// R rows packed as [K][R] times one panel; `add` continues the chain that c holds.
template <class T, class W, int R>
void stored_tile(const T* __restrict a, const W* __restrict panel, int64_t k_size, T* __restrict c,
                 int64_t ldc, bool add) {
  using V = typename Simd<T>::Vec;
  constexpr int kLanes = Simd<T>::kLanes;
  constexpr int kStep = kVecs * kLanes < kPanel ? kVecs * kLanes : kPanel;
  constexpr int kV = kStep / kLanes;
  for (int64_t col = 0; col < kPanel; col += kStep) {
    V acc[R][kV];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kV; ++v) acc[r][v] = add ? load(c + r * ldc + col + v * kLanes) : V{};
    }
    const W* b = panel + col;
    for (int64_t k = 0; k < k_size; ++k) {
      V right[kV];
#pragma GCC unroll 4
      for (int v = 0; v < kV; ++v) right[v] = widen_vec(b + k * kPanel + v * kLanes);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const T left = a[k * R + r];
#pragma GCC unroll 4
        for (int v = 0; v < kV; ++v) acc[r][v] += right[v] * left;
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kV; ++v) store(c + r * ldc + col + v * kLanes, acc[r][v]);
    }
  }
}

template <class T, class W>
SB_INLINE void stored_tile_rows(const T* a, int rows, const W* panel, int64_t k, T* c, int64_t ldc,
                                bool add) {
  using Fn = void (*)(const T*, const W*, int64_t, T*, int64_t, bool);
  static const Fn kTable[] = {
      stored_tile<T, W, 1>,  stored_tile<T, W, 2>,  stored_tile<T, W, 3>,
#if SB_VEC_BYTES > 16 || defined(__aarch64__)
      stored_tile<T, W, 4>,  stored_tile<T, W, 5>,  stored_tile<T, W, 6>,
#endif
#if SB_VEC_BYTES == 64
      stored_tile<T, W, 7>,  stored_tile<T, W, 8>,  stored_tile<T, W, 9>,  stored_tile<T, W, 10>,
      stored_tile<T, W, 11>, stored_tile<T, W, 12>, stored_tile<T, W, 13>, stored_tile<T, W, 14>,
#endif
  };
  static_assert(sizeof(kTable) / sizeof(kTable[0]) == kRows, "one entry per row count");
  kTable[rows - 1](a, panel, k, c, ldc, add);
}

constexpr int64_t kChunk = 512;  // of k: a packed tile of 14 rows then fits the first-level cache
constexpr int64_t kTilesPerPass = 8;  // tiles that share one chunk of a panel while it is in cache

template <class T>
SB_INLINE void pack_tile(const T* a, int64_t lda, int rows, int64_t k_size, T* __restrict packed) {
  for (int r = 0; r < rows; ++r) {
    const T* src = a + r * lda;
    for (int64_t k = 0; k < k_size; ++k) packed[k * rows + r] = src[k];
  }
}

// c[rows, panels p0..p1) = a[rows, k0..k1) · w[k0..k1, ..); c's padding columns come out zero.
template <class T, class W>
void stored_product_typed(const PackedMatrix& w, const T* a, int64_t lda, int64_t rows, T* c,
                          int64_t ldc, int64_t p0, int64_t p1, int64_t k0, int64_t k1) {
  const W* data = static_cast<const W*>(w.data);
  const int64_t pass = rows < kTilesPerPass * kRows ? rows : kTilesPerPass * kRows;
  T* scratch = thread_scratch<T>().reserve(pass * kChunk);
  for (int64_t row0 = 0; row0 < rows; row0 += pass) {
    const int64_t n = rows - row0 < pass ? rows - row0 : pass;
    const int64_t tiles = (n + kRows - 1) / kRows;
    for (int64_t k = k0; k < k1; k += kChunk) {
      const int64_t k_size = k1 - k < kChunk ? k1 - k : kChunk;
      for (int64_t i = 0; i < tiles; ++i) {
        const int64_t begin = share_begin(n, tiles, i), end = share_begin(n, tiles, i + 1);
        pack_tile(a + (row0 + begin) * lda + k, lda, static_cast<int>(end - begin), k_size,
                  scratch + begin * k_size);
      }
      for (int64_t p = p0; p < p1; ++p) {
        const W* panel = data + (p * w.rows + k) * kPanel;
        for (int64_t i = 0; i < tiles; ++i) {
          const int64_t begin = share_begin(n, tiles, i), end = share_begin(n, tiles, i + 1);
          stored_tile_rows<T, W>(scratch + begin * k_size, static_cast<int>(end - begin), panel,
                                 k_size, c + (row0 + begin) * ldc + p * kPanel, ldc, k > k0);
        }
      }
    }
  }
}

SB_INLINE void stored_product(const PackedMatrix& w, const float* a, int64_t lda, int64_t rows,
                              float* c, int64_t ldc, int64_t p0, int64_t p1, int64_t k0,
                              int64_t k1) {
  if (w.dtype == DType::kFloat16) {
    stored_product_typed<float, Half>(w, a, lda, rows, c, ldc, p0, p1, k0, k1);
  } else if (w.dtype == DType::kBFloat16) {
    stored_product_typed<float, Brain>(w, a, lda, rows, c, ldc, p0, p1, k0, k1);
  } else {
    stored_product_typed<float, float>(w, a, lda, rows, c, ldc, p0, p1, k0, k1);
  }
}

SB_INLINE void stored_product(const PackedMatrix& w, const double* a, int64_t lda, int64_t rows,
                              double* c, int64_t ldc, int64_t p0, int64_t p1, int64_t k0,
                              int64_t k1) {
  stored_product_typed<double, double>(w, a, lda, rows, c, ldc, p0, p1, k0, k1);
}

}  // namespace
}  // namespace SB_ISA
}  // namespace semobridge

// The tile product: the one matrix product of the core, with whatever epilogue its caller puts
// behind it while the tile is still in cache.
//
//   left operand   rows, packed as [K][R] for R <= kRows rows (R is a template argument of the
//   loop) right operand  panels of kPanel columns, packed as [K][kPanel] tile           R x kPanel,
//   row-major, written to a small buffer of the caller
//
// Each element is one chain of fused multiply-adds over k = 0..K-1, whatever R is: a row's result
// does not depend on the rows beside it.
#pragma once
#include "core/simd.h"

namespace semobridge {
namespace SB_ISA {
namespace {

// Registers: kRows x kVecs accumulators, kVecs right-hand vectors, one broadcast. AVX-512 and NEON
// have 32 of them, AVX2 and SSE 16.
#if SB_VEC_BYTES == 64
constexpr int kRows = 14, kVecs = 2;
#elif SB_VEC_BYTES == 32
constexpr int kRows = 6, kVecs = 2;
#elif defined(__aarch64__)
constexpr int kRows = 6, kVecs = 4;
#else
constexpr int kRows = 3, kVecs = 4;
#endif

template <class T, int R>
SB_INLINE void tile_rows(const T* __restrict a, const T* __restrict panel, int64_t k_size,
                         T* __restrict c, int64_t ldc) {
  using V = typename Simd<T>::Vec;
  constexpr int kLanes = Simd<T>::kLanes;
  constexpr int kStep = kVecs * kLanes < kPanel ? kVecs * kLanes : kPanel;
  constexpr int kV = kStep / kLanes;
  for (int64_t col = 0; col < kPanel; col += kStep) {
    V acc[R][kV];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kV; ++v) acc[r][v] = V{};
    }
    const T* b = panel + col;
    for (int64_t k = 0; k < k_size; ++k) {
      V right[kV];
#pragma GCC unroll 4
      for (int v = 0; v < kV; ++v) right[v] = load(b + k * kPanel + v * kLanes);
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

template <class T, int R>
void tile_rows_call(const T* a, const T* panel, int64_t k, T* c, int64_t ldc) {
  tile_rows<T, R>(a, panel, k, c, ldc);
}

// One row against four panels at once: a single row has too few independent chains in one panel to
// cover the latency of a multiply-add.
template <class T>
SB_INLINE void tile_one_row(const T* __restrict a, const T* __restrict panels, int64_t k_size,
                            T* __restrict c) {
  using V = typename Simd<T>::Vec;
  constexpr int kLanes = Simd<T>::kLanes;
  constexpr int kChains = 8;
  constexpr int kPerPanel = kPanel / kLanes < kChains ? kPanel / kLanes : kChains;
  constexpr int kAtOnce = kChains / kPerPanel;  // panels per pass
  for (int64_t p = 0; p < 4; p += kAtOnce) {
    for (int64_t col = 0; col < kPanel; col += kPerPanel * kLanes) {
      V acc[kAtOnce][kPerPanel];
#pragma GCC unroll 8
      for (int i = 0; i < kAtOnce; ++i) {
#pragma GCC unroll 8
        for (int v = 0; v < kPerPanel; ++v) acc[i][v] = V{};
      }
      const T* b = panels + p * k_size * kPanel + col;
      for (int64_t k = 0; k < k_size; ++k) {
        const T left = a[k];
#pragma GCC unroll 8
        for (int i = 0; i < kAtOnce; ++i) {
#pragma GCC unroll 8
          for (int v = 0; v < kPerPanel; ++v) {
            acc[i][v] += load(b + (i * k_size + k) * kPanel + v * kLanes) * left;
          }
        }
      }
#pragma GCC unroll 8
      for (int i = 0; i < kAtOnce; ++i) {
#pragma GCC unroll 8
        for (int v = 0; v < kPerPanel; ++v) {
          store(c + (p + i) * kPanel + col + v * kLanes, acc[i][v]);
        }
      }
    }
  }
}

// Tile of `rows` <= kRows rows (packed with that same count) against `panels` consecutive panels.
template <class T>
SB_INLINE void tile_product(const T* a, int rows, const T* packed, int64_t panels, int64_t k, T* c,
                            int64_t ldc) {
  using Fn = void (*)(const T*, const T*, int64_t, T*, int64_t);
  static const Fn kTable[] = {
      tile_rows_call<T, 1>,  tile_rows_call<T, 2>,  tile_rows_call<T, 3>,
#if SB_VEC_BYTES > 16 || defined(__aarch64__)
      tile_rows_call<T, 4>,  tile_rows_call<T, 5>,  tile_rows_call<T, 6>,
#endif
#if SB_VEC_BYTES == 64
      tile_rows_call<T, 7>,  tile_rows_call<T, 8>,  tile_rows_call<T, 9>,  tile_rows_call<T, 10>,
      tile_rows_call<T, 11>, tile_rows_call<T, 12>, tile_rows_call<T, 13>, tile_rows_call<T, 14>,
#endif
  };
  static_assert(sizeof(kTable) / sizeof(kTable[0]) == kRows, "one entry per row count");
  int64_t p = 0;
  if (rows == 1) {
    for (; p + 4 <= panels; p += 4) tile_one_row(a, packed + p * k * kPanel, k, c + p * kPanel);
  }
  for (; p < panels; ++p) kTable[rows - 1](a, packed + p * k * kPanel, k, c + p * kPanel, ldc);
}

// Packs `rows` rows of x from `row0`, any dtype, as [K][rows]; with `index`, rows index[row0 + r].
template <class T>
SB_INLINE void pack_rows(const ConstMatrix& x, int64_t row0, int rows, T* __restrict packed,
                         const int64_t* index = nullptr) {
  const int64_t k_size = x.cols;
  const int64_t bytes = dtype_size(x.dtype);
  constexpr int64_t kChunk = 64;
  T line[kChunk];
  for (int r = 0; r < rows; ++r) {
    const int64_t row = index != nullptr ? index[row0 + r] : row0 + r;
    const char* src = static_cast<const char*>(x.data) + row * x.row_stride * bytes;
    for (int64_t k = 0; k < k_size; k += kChunk) {
      const int64_t n = k_size - k < kChunk ? k_size - k : kChunk;
      widen(src + k * bytes, x.dtype, n, line);
      for (int64_t i = 0; i < n; ++i) packed[(k + i) * rows + r] = line[i];
    }
  }
}

// How many rows a block's micro-tile `i` of `count` gets when `rows` are shared out evenly.
SB_INLINE int64_t share_begin(int64_t rows, int64_t count, int64_t i) { return rows * i / count; }

}  // namespace
}  // namespace SB_ISA
}  // namespace semobridge

// matrix_product for one instruction set: blocks of packed rows, shared by the team, times panels
// that each thread packs for itself.
#include <omp.h>

#include "core/interrupt.h"
#include "core/product.h"
#include "core/scratch.h"
#include "core/table.h"
#include "core/team.h"
#include "core/tile.h"
#include "core/transpose.h"

namespace semobridge {
namespace SB_ISA {
namespace {

constexpr int64_t kDepth = 512;  // of K at once: a panel is 64 KiB of float32, inside L2
constexpr int64_t kTiles = 40;   // of rows at once, for each four threads
constexpr int64_t kProductsPerThread = 768 * 1024;
constexpr int64_t kItemsPerThread = 4;  // pieces of work, so that no thread waits long

template <class T>
struct Loose;
template <>
struct Loose<float> {
  using Type = LooseFloat;
};
template <>
struct Loose<double> {
  using Type = LooseDouble;
};

template <class T>
SB_INLINE const char* element(const ConstMatrix& m, int64_t row, int64_t col) {
  return static_cast<const char*>(m.data) +
         (row * m.row_stride + col) * static_cast<int64_t>(sizeof(T));
}

// Rows [row0, row0 + count) of A over [k0, k0 + depth), as [depth][count].
template <class T>
SB_INLINE void pack_left(const MatrixProductArgs& p, int64_t row0, int count, int64_t k0,
                         int64_t depth, T* __restrict packed) {
  if (!p.transposed_a) {
    const ConstMatrix part{element<T>(p.a, row0, k0), p.a.dtype, count, depth, p.a.row_stride};
    pack_rows(part, 0, count, packed);
    return;
  }
  for (int64_t k = 0; k < depth; ++k) {
    const auto* line =
        reinterpret_cast<const typename Loose<T>::Type*>(element<T>(p.a, k0 + k, row0));
    for (int r = 0; r < count; ++r) packed[k * count + r] = line[r];
  }
}

// Columns [col, col + kPanel) of B over [k0, k0 + depth), those past its last zero.
template <class T>
SB_INLINE void pack_right(const MatrixProductArgs& p, int64_t col, int64_t k0, int64_t depth,
                          T* __restrict panel) {
  const int64_t left = p.out.cols - col, count = left < kPanel ? left : kPanel;
  if (p.transposed_b) {
    const ConstMatrix part{element<T>(p.b, col, k0), p.b.dtype, count, depth, p.b.row_stride};
    pack_panel(part, nullptr, 0, count, panel);
    return;
  }
  for (int64_t k = 0; k < depth; ++k) {
    T* to = panel + k * kPanel;
    widen(element<T>(p.b, k0 + k, col), p.b.dtype, count, to);
    for (int64_t i = count; i < kPanel; ++i) to[i] = T(0);
  }
}

// A finished tile of `rows` rows into out, or onto what it holds.
template <class T>
SB_INLINE void put_tile(const T* __restrict tile, int rows, bool add, int64_t row0, int64_t col,
                        const Matrix& out) {
  const int64_t left = out.cols - col, count = left < kPanel ? left : kPanel;
  for (int r = 0; r < rows; ++r) {
    T* __restrict to = static_cast<T*>(out.data) + (row0 + r) * out.row_stride + col;
    const T* from = tile + r * kPanel;
    if (add) {
      for (int64_t i = 0; i < count; ++i) to[i] += from[i];
    } else {
      for (int64_t i = 0; i < count; ++i) to[i] = from[i];
    }
  }
}

// Rows [row0, row0 + rows) of out, by a team inside of its parallel region.
template <class T>
void multiply_rows(const MatrixProductArgs& p, int64_t row0, int64_t rows, T* packed, T* panel,
                   Watch& watch) {
  const int64_t k_size = p.transposed_a ? p.a.rows : p.a.cols;
  const int64_t tiles = (rows + kRows - 1) / kRows, panels = panels_of(p.out.cols);
  const int64_t wanted = kItemsPerThread * p.threads;
  int64_t groups = (wanted + panels - 1) / panels;  // of tiles, where there are few panels
  groups = groups < tiles ? groups : tiles;
  alignas(64) T tile[kRows * kPanel];
  for (int64_t k0 = 0; k0 < k_size; k0 += kDepth) {
    const int64_t depth = k_size - k0 < kDepth ? k_size - k0 : kDepth;
#pragma omp for schedule(static)
    for (int64_t i = 0; i < tiles; ++i) {
      const int64_t begin = share_begin(rows, tiles, i), end = share_begin(rows, tiles, i + 1);
      pack_left(p, row0 + begin, static_cast<int>(end - begin), k0, depth, packed + begin * depth);
    }
#pragma omp for schedule(dynamic, 1)
    for (int64_t item = 0; item < panels * groups; ++item) {
      if (watch.stop()) continue;
      const int64_t col = item / groups * kPanel, group = item % groups;
      pack_right(p, col, k0, depth, panel);
      const int64_t last = share_begin(tiles, groups, group + 1);
      for (int64_t i = share_begin(tiles, groups, group); i < last; ++i) {
        const int64_t begin = share_begin(rows, tiles, i), end = share_begin(rows, tiles, i + 1);
        const int count = static_cast<int>(end - begin);
        tile_product(packed + begin * depth, count, panel, 1, depth, tile, kPanel);
        put_tile(tile, count, k0 > 0 || p.accumulate, row0 + begin, col, p.out);
      }
    }
  }
}

template <class T>
void product_typed(const MatrixProductArgs& p) {
  const int64_t k_size = p.transposed_a ? p.a.rows : p.a.cols;
  const int64_t depth = k_size < kDepth ? k_size : kDepth;
  const int64_t fours = (p.threads + 3) / 4;
  const int64_t most = kTiles * fours * kRows;
  const int64_t blocks = (p.out.rows + most - 1) / most;
  T* packed = thread_scratch<T>().reserve((p.out.rows + blocks - 1) / blocks * depth);
  const double products = static_cast<double>(p.out.rows) * k_size * p.out.cols;
  const int team = worth_threads(products, kProductsPerThread, p.threads);
  Watch watch;
#pragma omp parallel num_threads(team) if (team > 1)
  {
    T* panel = thread_row_scratch<T>().reserve(kPanel * depth);
    for (int64_t i = 0; i < blocks; ++i) {
      const int64_t row0 = share_begin(p.out.rows, blocks, i);
      multiply_rows(p, row0, share_begin(p.out.rows, blocks, i + 1) - row0, packed, panel, watch);
    }
  }
  watch.finish();
}

}  // namespace

void matrix_product_entry(const MatrixProductArgs& p) {
  const int64_t n = p.transposed_a ? p.a.cols : p.a.rows, k = p.transposed_a ? p.a.rows : p.a.cols;
  const int64_t m = p.transposed_b ? p.b.rows : p.b.cols;
  require(is_compute_dtype(p.out.dtype) && p.a.dtype == p.out.dtype && p.b.dtype == p.out.dtype,
          "matrix_product: a, b and out must be float32, or float64");
  require((p.transposed_b ? p.b.cols : p.b.rows) == k && k > 0,
          "matrix_product: b must have as many rows as a has columns, and at least one");
  require(p.out.rows == n && p.out.cols == m, "matrix_product: out must be [N, M]");
  require(p.threads >= 1, "matrix_product: threads must be at least 1");
  if (n == 0 || m == 0) return;
  if (p.out.dtype == DType::kFloat64) {
    product_typed<double>(p);
  } else {
    product_typed<float>(p);
  }
}

}  // namespace SB_ISA
}  // namespace semobridge

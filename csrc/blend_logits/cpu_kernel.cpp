// blend_logits for one instruction set; see blend_logits/blend_logits.h for what it computes.
#include <omp.h>

#include "blend_logits/blend_logits.h"
#include "core/interrupt.h"
#include "core/row_norm.h"
#include "core/scratch.h"
#include "core/table.h"
#include "core/tile.h"
#include "core/vexp.h"

namespace semobridge {
namespace SB_ISA {
namespace {

constexpr int64_t kTilesPerBlock = 4;
constexpr int64_t kBlock = kTilesPerBlock * kRows;
constexpr int64_t kGroup = 3 * kPanel;  // the three panels of kPanel classes

template <class T>
struct BlendBlock {
  using V = typename Simd<T>::Vec;
  using I = typename ExpConstants<T>::Int;
  using Index = decltype(I{}[0] + 0);  // one lane of I
  static constexpr int kLanes = Simd<T>::kLanes;
  static constexpr int kV = kPanel / kLanes;

  const BlendLogitsArgs& a;
  explicit BlendBlock(const BlendLogitsArgs& args) : a(args) {}

  int64_t row0, rows, tiles;
  T* packed;   // [rows][K], tile after tile
  T* tile;     // [kRows][kGroup]
  T* best;     // [rows][kPanel] running maximum of every lane
  T* best_at;  // [rows][kPanel] its class, as the integer type of the lanes
  T* line;     // [max(K, R) rounded up]
  T inverse[kBlock], inverse_bridged[kBlock];

  int64_t begin(int64_t i) const { return share_begin(rows, tiles, i); }
  int count(int64_t i) const { return static_cast<int>(begin(i + 1) - begin(i)); }

  static T reciprocal(T norm) { return norm == T(0) ? T(0) : T(1) / norm; }

  void load_rows() {
    const int64_t k = a.x.cols, bytes = dtype_size(a.x.dtype);
    for (int64_t i = 0; i < tiles; ++i) {
      pack_rows(a.x, row0 + begin(i), count(i), packed + begin(i) * k);
    }
    for (int64_t r = 0; r < rows; ++r) {
      const char* src = static_cast<const char*>(a.x.data) + (row0 + r) * a.x.row_stride * bytes;
      widen(src, a.x.dtype, k, line);
      for (int64_t j = k; j < panels_of(k) * kPanel; ++j) line[j] = T(0);
      inverse[r] = reciprocal(measure_row(line, panels_of(k)).norm);
    }
  }

  void bridged_norms(const T* right, int64_t panels) {
    const int64_t k = a.x.cols, ld = panels * kPanel;
    for (int64_t i = 0; i < tiles; ++i) {
      tile_product(packed + begin(i) * k, count(i), right, panels, k, line, ld);
      for (int r = 0; r < count(i); ++r) {
        inverse_bridged[begin(i) + r] = reciprocal(measure_row(line + r * ld, panels).norm);
      }
    }
  }

  void write_block(void* out, int64_t row, int64_t col, int64_t n, const T* z, T factor) {
    T* dst = static_cast<T*>(out) + row * a.classes + col;
    for (int64_t i = 0; i < n; ++i) dst[i] = z[i] * factor;
  }

  // The logits of kPanel classes of one row from its three products, in place of the first.
  void logits_of(T* z, const T* w, T inv, T inv_bridged) {
    const T alpha = static_cast<T>(a.alpha), beta = static_cast<T>(a.beta);
    const T gamma = static_cast<T>(a.gamma);
    const T l1 = static_cast<T>(a.lambda[0]), l2 = static_cast<T>(a.lambda[1]);
    const T l3 = static_cast<T>(a.lambda[2]);
    for (int v = 0; v < kV; ++v) {
      const V z1 = load(z + v * kLanes) * inv, z2 = load(z + kPanel + v * kLanes) * inv;
      const V z3 = load(z + 2 * kPanel + v * kLanes) * inv_bridged;
      V shots = vexp<T>(z2 * beta - beta) * l2 + vexp<T>(z3 * gamma - gamma) * l3;
      if (w != nullptr) shots *= load(w + v * kLanes);
      store(z + v * kLanes, vexp<T>(z1 * alpha - alpha) * l1 + shots);
    }
  }

  void keep_best(int64_t r, int64_t col, int64_t n, const T* z) {
    const T infinity = static_cast<T>(__builtin_inf());
    for (int v = 0; v < kV; ++v) {
      V score = load(z + v * kLanes);
      I at;
      for (int j = 0; j < kLanes; ++j) at[j] = v * kLanes + j;
      score = at < (I{} + static_cast<Index>(n)) ? score
                                                 : V{} - infinity;  // columns past the last class
      V top = load(best + r * kPanel + v * kLanes);
      V where = load(best_at + r * kPanel + v * kLanes);
      const I higher = score > top;
      top = higher ? score : top;
      where = higher ? reinterpret_cast<V>(at + static_cast<Index>(col)) : where;
      store(best + r * kPanel + v * kLanes, top);
      store(best_at + r * kPanel + v * kLanes, where);
    }
  }

  void classes(const T* right) {
    const int64_t k = a.x.cols;
    for (int64_t p = 0; p < panels_of(a.classes); ++p) {
      const int64_t col = p * kPanel;
      const int64_t n = a.classes - col < kPanel ? a.classes - col : kPanel;
      const T* w = a.weights != nullptr ? static_cast<const T*>(a.weights) + col : nullptr;
      for (int64_t i = 0; i < tiles; ++i) {
        tile_product(packed + begin(i) * k, count(i), right + p * k * kGroup, 3, k, tile, kGroup);
        for (int j = 0; j < count(i); ++j) {
          const int64_t r = begin(i) + j;
          T* z = tile + j * kGroup;
          if (a.blocks[0] != nullptr) {
            write_block(a.blocks[0], row0 + r, col, n, z, inverse[r]);
            write_block(a.blocks[1], row0 + r, col, n, z + kPanel, inverse[r]);
            write_block(a.blocks[2], row0 + r, col, n, z + 2 * kPanel, inverse_bridged[r]);
          }
          if (a.logits == nullptr && a.labels == nullptr) continue;
          logits_of(z, w, inverse[r], inverse_bridged[r]);
          if (a.logits != nullptr) write_block(a.logits, row0 + r, col, n, z, T(1));
          if (a.labels != nullptr) keep_best(r, col, n, z);
        }
      }
    }
  }

  void write_labels() {
    for (int64_t r = 0; r < rows; ++r) {
      T top = -static_cast<T>(__builtin_inf());
      int64_t at = 0;
      for (int64_t j = 0; j < kPanel; ++j) {
        const T score = best[r * kPanel + j];
        Index c;
        __builtin_memcpy(&c, best_at + r * kPanel + j, sizeof(c));
        if (score > top || (score == top && c < at)) {
          top = score;
          at = c;
        }
      }
      a.labels[row0 + r] = at;
    }
  }
};

template <class T>
void blend_logits_typed(const BlendLogitsArgs& a) {
  const int64_t k = a.x.cols, blocks = (a.x.rows + kBlock - 1) / kBlock;
  const int64_t norm_panels = panels_of(a.right.cols) - 3 * panels_of(a.classes);
  const int64_t wide = norm_panels * kRows > panels_of(k) ? norm_panels * kRows : panels_of(k);
  const int64_t team = blocks < a.threads ? blocks : a.threads;
  Watch watch;
#pragma omp parallel num_threads(static_cast<int>(team)) if (team > 1)
  {
    T* memory =
        thread_row_scratch<T>().reserve(kBlock * (k + 2 * kPanel) + kRows * kGroup + wide * kPanel);
    const T* right = static_cast<const T*>(a.right.data);
#pragma omp for schedule(dynamic, 1)
    for (int64_t b = 0; b < blocks; ++b) {
      if (watch.stop()) continue;
      BlendBlock<T> block(a);
      block.row0 = share_begin(a.x.rows, blocks, b);
      block.rows = share_begin(a.x.rows, blocks, b + 1) - block.row0;
      block.tiles = (block.rows + kRows - 1) / kRows;
      block.packed = memory;
      block.tile = block.packed + kBlock * k;
      block.best = block.tile + kRows * kGroup;
      block.best_at = block.best + kBlock * kPanel;
      block.line = block.best_at + kBlock * kPanel;
      for (int64_t i = 0; i < block.rows * kPanel; ++i) {
        block.best[i] = -static_cast<T>(__builtin_inf());
        block.best_at[i] = T(0);
      }
      block.load_rows();
      if (a.bridged) {
        block.bridged_norms(right + 3 * panels_of(a.classes) * k * kPanel, norm_panels);
      } else {
        for (int64_t r = 0; r < block.rows; ++r) block.inverse_bridged[r] = block.inverse[r];
      }
      block.classes(right);
      if (a.labels != nullptr) block.write_labels();
    }
  }
  watch.finish();
}

void check(const BlendLogitsArgs& a) {
  const int64_t class_cols = 3 * panels_of(a.classes) * kPanel;
  require(a.classes > 0, "blend_logits: there must be at least one class");
  require(a.right.rows == a.x.cols, "blend_logits: right must have as many rows as x has columns");
  require(a.right.dtype == compute_dtype(a.x.dtype),
          "blend_logits: right must have the compute dtype");
  require(a.bridged ? a.right.cols > class_cols : a.right.cols == class_cols,
          "blend_logits: right must hold three panels for every panel of classes, then R");
  require((a.blocks[0] != nullptr) == (a.blocks[1] != nullptr) &&
              (a.blocks[0] != nullptr) == (a.blocks[2] != nullptr),
          "blend_logits: blocks must be three or none");
}

}  // namespace

void blend_logits_entry(const BlendLogitsArgs& a) {
  if (a.x.rows == 0) return;
  check(a);
  if (a.x.dtype == DType::kFloat64) {
    blend_logits_typed<double>(a);
  } else {
    blend_logits_typed<float>(a);
  }
}

}  // namespace SB_ISA
}  // namespace semobridge

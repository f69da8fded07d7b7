// What happens to finished tiles of rows: bias, norm, scale, residual, conversion.
#pragma once
#include "core/row_norm.h"
#include "core/tile.h"
#include "project_normalize/project_normalize.h"

namespace semobridge {
namespace SB_ISA {
namespace {

template <class T>
constexpr DType dtype_of() {
  return sizeof(T) == 8 ? DType::kFloat64 : DType::kFloat32;
}

// Bias, norm and scale of `rows` rows that begin at row `row0` of the batch; `norms` may be null.
template <class T>
SB_INLINE void finish_stage(const ProjectStage& stage, int64_t row0, int64_t rows, T* y, int64_t ld,
                            void* norms) {
  const int64_t panels = panels_of(stage.matrix.cols);
  const T scale = static_cast<T>(stage.scale);
  for (int64_t r = 0; r < rows; ++r) {
    T* row = y + r * ld;
    if (stage.bias.data != nullptr) {
      const T* bias = static_cast<const T*>(stage.bias.data) + (row0 + r) * stage.bias.row_stride;
      for (int64_t i = 0; i < stage.matrix.cols; ++i) row[i] += bias[i];
    }
    T factor = scale;
    if (stage.normalize) {
      const RowNorm<T> measured = measure_row(row, panels);
      factor = measured.inverse * scale;
      if (norms != nullptr) static_cast<T*>(norms)[row0 + r] = measured.norm;
    }
    if (factor == T(1)) continue;
    for (int64_t i = 0; i < panels * kPanel; ++i) row[i] *= factor;
  }
}

template <class T>
SB_INLINE void write_rows(const Matrix& out, int64_t row0, int64_t rows, const T* y, int64_t ld) {
  const int64_t bytes = dtype_size(out.dtype);
  for (int64_t r = 0; r < rows; ++r) {
    narrow(y + r * ld, T(1), out.cols, out.dtype,
           static_cast<char*>(out.data) + (row0 + r) * out.row_stride * bytes);
  }
}

// y ← x − y, the complement form of a projector.
template <class T>
SB_INLINE void subtract_from_input(const ConstMatrix& x, int64_t row0, int64_t rows, T* y,
                                   int64_t ld, T* line) {
  const int64_t bytes = dtype_size(x.dtype);
  for (int64_t r = 0; r < rows; ++r) {
    widen(static_cast<const char*>(x.data) + (row0 + r) * x.row_stride * bytes, x.dtype, x.cols,
          line);
    T* row = y + r * ld;
    for (int64_t i = 0; i < x.cols; ++i) row[i] = line[i] - row[i];
  }
}

// All panels of a block of packed rows: a panel is read from memory once and serves every
// micro-tile.
template <class T>
SB_INLINE void multiply_block(const T* packed, int64_t rows, int64_t tiles, const PackedMatrix& m,
                              T* y, int64_t ld) {
  const T* right = static_cast<const T*>(m.data);
  for (int64_t p = 0; p < panels_of(m.cols); ++p) {
    for (int64_t i = 0; i < tiles; ++i) {
      const int64_t begin = share_begin(rows, tiles, i);
      const int count = static_cast<int>(share_begin(rows, tiles, i + 1) - begin);
      tile_product(packed + begin * m.rows, count, right + p * m.rows * kPanel, 1, m.rows,
                   y + begin * ld + p * kPanel, ld);
    }
  }
}

}  // namespace
}  // namespace SB_ISA
}  // namespace semobridge

#include "core/pack.h"
#include "core/simd.h"
#include "core/table.h"

namespace semobridge {
namespace SB_ISA {
namespace {

// Sixteen-bit panels are rounded from float32.
template <class T>
void pack_typed(const PackMatrixArgs& a) {
  const ConstMatrix& m = a.matrix;
  const int64_t bytes = dtype_size(m.dtype), out_bytes = dtype_size(a.dtype);
  const bool direct = out_bytes == static_cast<int64_t>(sizeof(T));
  T line[kPanel];
  for (int64_t p = 0; p < panels_of(m.cols); ++p) {
    const int64_t col = p * kPanel;
    const int64_t n = m.cols - col < kPanel ? m.cols - col : kPanel;
    for (int64_t k = 0; k < m.rows; ++k) {
      char* out = static_cast<char*>(a.out) + (p * m.rows + k) * kPanel * out_bytes;
      T* dst = direct ? reinterpret_cast<T*>(out) : line;
      widen(static_cast<const char*>(m.data) + (k * m.row_stride + col) * bytes, m.dtype, n, dst);
      for (int64_t i = n; i < kPanel; ++i) dst[i] = T(0);
      if (!direct) narrow(line, T(1), kPanel, a.dtype, out);
    }
  }
}

}  // namespace

void pack_matrix_entry(const PackMatrixArgs& a) {
  require(a.matrix.rows > 0 && a.matrix.cols > 0, "pack_matrix: matrix must not be empty");
  if (a.dtype == DType::kFloat64) {
    pack_typed<double>(a);
  } else {
    pack_typed<float>(a);
  }
}

}  // namespace SB_ISA
}  // namespace semobridge

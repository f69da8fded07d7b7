// normalize_rows (CUDA): the epilogue behind a matrix product made elsewhere.
//
//   y = x + b      out = s·y/‖y‖  (normalize)  or  s·y
//
// A product that was made in two parts comes with them side by side, x = [hi | lo]. Sums are
// float32 (float64 for float64 rows); a zero row stays zero; a row with NaN keeps it to itself.
#pragma once
#include "core/view.h"

namespace semobridge {

struct NormalizeRowsArgs {
  ConstMatrix x;     // [N, M] float32 or float64, or [N, 2·M] float32: two parts, added
  ConstMatrix bias;  // [N, M] or one row with row_stride 0, dtype of x; data == nullptr: none
  bool normalize = true;
  double scale = 1.0;
  Matrix out;             // [N, M], any dtype
  void* norms = nullptr;  // [N], dtype of x; may be null
};

// Runs on `stream` (a cudaStream_t) of `device`, asynchronously, without allocation; throws
// std::runtime_error when the launch is refused.
void normalize_rows_cuda(const NormalizeRowsArgs& args, int device, void* stream);

}  // namespace semobridge

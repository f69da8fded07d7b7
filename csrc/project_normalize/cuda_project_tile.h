// project_tile (CUDA): rows times a matrix on tensor cores, with the norm behind it, in one launch.
//
//   y = x·M + b      out = s·y/‖y‖  (normalize)  or  s·y
//
// From a few dozen rows on (below: project_normalize/cuda.h). The matrix stays float32: it is cut
// into two parts of the multiplier's type, M ≈ hi + lo, and so are float32 rows (TF32), and the
// products of the parts are summed in float32:
//
//   float16, bfloat16   x·hi + x·lo              error of M 2⁻²² and 2⁻¹⁷: below the output's
//   rounding float32             x_hi·hi + x_hi·lo + x_lo·hi      error 2⁻²¹
//
// An infinite entry makes its whole row NaN (∞·hi + ∞·lo). float16 parts have a narrow range:
// `matrix_scale`, a power of two, brings M into it.
#pragma once
#include "core/view.h"

namespace semobridge {

constexpr int64_t kProjectTileRows = 32;

struct ProjectTileCudaArgs {
  ConstMatrix x;       // [N, K] float32, float16 or bfloat16
  ConstMatrix matrix;  // [K, M] float32
  double matrix_scale = 1.0;
  ConstMatrix bias;  // [N, M] or one row with row_stride 0, float32; data == nullptr: none
  bool normalize = true;
  double scale = 1.0;
  Matrix out;              // [N, M], dtype of x
  float* norms = nullptr;  // [N] ‖y‖; may be null
  float* raw = nullptr;    // [N, M] workspace, with normalize
  int* tickets = nullptr;  // project_tile_cuda_tickets(N), zero on entry and zero again afterwards
};

constexpr int64_t project_tile_cuda_tickets(int64_t n) {
  return (n + kProjectTileRows - 1) / kProjectTileRows;
}

// At most 65535 tiles of rows.
void project_tile_cuda(const ProjectTileCudaArgs& args, int device, void* stream);

}  // namespace semobridge

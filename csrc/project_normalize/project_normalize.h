// project_normalize: one or two matrix products per row with the normalisation fused behind each.
//
//   h = x·M1 (+ b1)                h ← s1·h/‖h‖  if normalize1, else s1·h
//   y = h                          (one stage)
//   y = h·M2  or  x − h·M2         (two stages; `residual` picks the second form)
//                                  y ← s2·y/‖y‖  if normalize2, else s2·y
//
// It is the bridge (M1 = P, one stage; or M1 = Q, M2 = Qᵀ with the residual: x(I − QQᵀ)), the
// un-normalised bridge (M1 = W⁺, M2 = W), and any linear map followed by a normalisation.
//
// Accumulation is float32 (float64 for float64 rows) in one fixed order per row: the result of a
// row does not depend on the batch it came in, nor on the number of threads. A row with NaN or
// infinity stays in its row. A zero row gives a zero row.
#pragma once
#include "core/view.h"

namespace semobridge {

struct ProjectStage {
  PackedMatrix matrix;  // [K, M]
  ConstMatrix bias;     // [N, M] or [1, M] with row_stride 0; data == nullptr: none
  bool normalize = false;
  double scale = 1.0;
};

struct ProjectNormalizeArgs {
  ConstMatrix x;          // [N, K]
  ProjectStage first;     // [K, M]
  ProjectStage second;    // [M, O]; matrix.data == nullptr: one stage
  bool residual = false;  // y = x − h·M2; needs O == K
  Matrix out;             // [N, O]
  void* norms = nullptr;  // [N] of the compute type: ‖y‖ before the last normalisation; may be null
  int threads = 1;
};

// Scratch is one grow-only buffer per thread, at most about 1 MiB at D = 1024: at one image a call
// a fresh allocation would cost a tenth of the call.
void project_normalize(const ProjectNormalizeArgs& args);

}  // namespace semobridge

// project_normalize (CUDA): a few rows times a matrix, with the norm behind it, in one launch.
//
//   y = x·M + b      out = s·y/‖y‖  (normalize)  or  s·y
//
// For small N: M is read once from cache by one warp per column and block of kProjectNormalizeRows
// rows. The block that finishes last normalises, so that no second launch is needed. Large N
// belongs to a tiled product. float32 sums; a row's result does not depend on its batch.
#pragma once
#include "core/view.h"

namespace semobridge {

constexpr int64_t kProjectNormalizeRows = 8;

struct ProjectNormalizeCudaArgs {
  ConstMatrix x;       // [N, K] float32, float16 or bfloat16
  ConstMatrix matrix;  // [M, K], the transpose of M; float32 or the dtype of x
  ConstMatrix bias;    // [N, M] or one row with row_stride 0, float32; data == nullptr: none
  bool normalize = true;
  double scale = 1.0;
  Matrix out;              // [N, M], dtype of x
  float* norms = nullptr;  // [N] ‖y‖; may be null
  float* raw = nullptr;    // [N, M] workspace, with normalize
  int* tickets =
      nullptr;  // project_normalize_cuda_tickets(N), zero on entry and zero again afterwards
};

constexpr int64_t project_normalize_cuda_tickets(int64_t n) {
  return (n + kProjectNormalizeRows - 1) / kProjectNormalizeRows;
}

// Every *_cuda function runs on `stream` (a cudaStream_t) of `device`, asynchronously, without
// allocation, and throws std::runtime_error when the launch is refused.
void project_normalize_cuda(const ProjectNormalizeCudaArgs& args, int device, void* stream);

}  // namespace semobridge

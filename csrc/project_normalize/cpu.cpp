// Checks what the kernels of project_normalize/project_normalize.h take for granted, then calls the
// active set's.
#include "core/table.h"
#include "project_normalize/project_normalize.h"

namespace semobridge {
namespace {

void check_stage(const ProjectStage& stage, int64_t n, int64_t k, DType compute) {
  require(stage.matrix.rows == k,
          "project: matrix must have as many rows as its input has columns");
  require(stage.matrix.dtype == compute, "project: packed matrix must have the compute dtype");
  require(reinterpret_cast<uintptr_t>(stage.matrix.data) % 64 == 0,
          "project: packed matrix must be 64-byte aligned");
  if (stage.bias.data != nullptr) {
    require(stage.bias.cols == stage.matrix.cols,
            "project: bias must have as many columns as matrix");
    require(stage.bias.dtype == compute, "project: bias must have the compute dtype");
    require(stage.bias.rows == n || stage.bias.row_stride == 0,
            "project: bias must have one row or N");
  }
}

}  // namespace

void pack_matrix(const ConstMatrix& matrix, DType compute, void* out) {
  require(compute == DType::kFloat32 || compute == DType::kFloat64,
          "pack_matrix: compute dtype must be float32 or float64");
  require(matrix.rows > 0 && matrix.cols > 0, "pack_matrix: matrix must not be empty");
  kernels().pack_matrix(matrix, compute, out);
}

void project(const ProjectArgs& a) {
  if (a.x.rows == 0) return;
  const DType compute = a.x.dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
  check_stage(a.first, a.x.rows, a.x.cols, compute);
  int64_t out_cols = a.first.matrix.cols;
  if (a.second.matrix.data != nullptr) {
    check_stage(a.second, a.x.rows, a.first.matrix.cols, compute);
    out_cols = a.second.matrix.cols;
  }
  require(a.out.rows == a.x.rows && a.out.cols == out_cols, "project: out must be [N, O]");
  require(!a.residual || (a.second.matrix.data != nullptr && out_cols == a.x.cols),
          "project: residual needs two stages that end at the input's width");
  kernels().project(a);
}

}  // namespace semobridge

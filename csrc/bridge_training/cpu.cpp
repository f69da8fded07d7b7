// Checks what the kernels of bridge_training/bridge_training.h take for granted, then calls the
// active set's.
#include "bridge_training/bridge_training.h"
#include "core/table.h"

namespace semobridge {
namespace {

void check_rows(const ClassRows& rows) {
  require(rows.dtype == DType::kFloat32 || rows.dtype == DType::kFloat64,
          "train: dtype must be float32 or float64");
  require(rows.offsets != nullptr && rows.first >= 0 && rows.first <= rows.last,
          "train: classes must be a range of the offsets");
}

}  // namespace

void shot_norms(const ShotNormsArgs& a) {
  check_rows(a.rows);
  kernels().shot_norms(a);
}

void shot_dots(const ShotDotsArgs& a) {
  check_rows(a.rows);
  kernels().shot_dots(a);
}

void row_loss(const RowLossArgs& a) {
  check_rows(a.rows);
  require(a.stride >= a.classes, "row_loss: stride must be at least the number of classes");
  kernels().row_loss(a);
}

void shot_grads(const ShotGradsArgs& a) {
  check_rows(a.rows);
  kernels().shot_grads(a);
}

void adamw(const AdamwArgs& a) {
  require(a.dtype == DType::kFloat32 || a.dtype == DType::kFloat64,
          "adamw: dtype must be float32 or float64");
  require(a.step >= 1, "adamw: step counts from 1");
  kernels().adamw(a);
}

}  // namespace semobridge

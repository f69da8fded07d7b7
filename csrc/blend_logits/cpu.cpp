// Checks what the kernel of blend_logits/blend_logits.h takes for granted, then calls the active
// set's.
#include "blend_logits/blend_logits.h"
#include "core/table.h"

namespace semobridge {

void blend(const BlendArgs& a) {
  if (a.x.rows == 0) return;
  const DType compute = a.x.dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
  const int64_t class_cols = 3 * panels_of(a.classes) * kPanel;
  require(a.classes > 0, "blend: there must be at least one class");
  require(a.right.rows == a.x.cols, "blend: right must have as many rows as x has columns");
  require(a.right.dtype == compute, "blend: right must have the compute dtype");
  require(a.bridged ? a.right.cols > class_cols : a.right.cols == class_cols,
          "blend: right must hold three panels for every panel of classes, then R");
  require((a.blocks[0] != nullptr) == (a.blocks[1] != nullptr) &&
              (a.blocks[0] != nullptr) == (a.blocks[2] != nullptr),
          "blend: blocks must be three or none");
  kernels().blend(a);
}

}  // namespace semobridge

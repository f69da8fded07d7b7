// pack_matrix: lays a matrix out in the panels of the tile product (core/view.h).
#pragma once
#include "core/view.h"

namespace semobridge {

struct PackMatrixArgs {
  ConstMatrix matrix;  // [K, M]
  // Of the panels: float32 or float64, or float16 or bfloat16 where the product widens them.
  DType dtype = DType::kFloat32;
  void* out = nullptr;  // packed_elements(K, M) elements
};
void pack_matrix(const PackMatrixArgs& args);

}  // namespace semobridge

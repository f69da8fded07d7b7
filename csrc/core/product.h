// matrix_product: out = A·B, or out += A·B, of matrices that change from call to call.
//
// Where one operand stays, pack_matrix and an operator over it save the packing (core/pack.h).
#pragma once
#include "core/view.h"

namespace semobridge {

// float32 or float64 throughout. An element is a sum over K in chains of 512 fused multiply-adds,
// added in order: it depends neither on the other rows and columns nor on the threads.
struct MatrixProductArgs {
  ConstMatrix a;  // [N, K]; [K, N] with transposed_a
  ConstMatrix b;  // [K, M]; [M, K] with transposed_b
  bool transposed_a = false, transposed_b = false;
  bool accumulate = false;  // add to what out holds
  Matrix out;               // [N, M], apart from a and b
  int threads = 1;
};

// Scratch: 1.1 MiB of the calling thread for float32 (for each four threads), and 64 KiB each.
void matrix_product(const MatrixProductArgs& args);

}  // namespace semobridge

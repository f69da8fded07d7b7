// scale_rows (CUDA): rows of bfloat16 as float16, each times its own power of two.
//
//   out = 2^e·x      e brings the row's largest entry into [2^14, 2^15)
//
// Exact: float16 holds the eight bits of a bfloat16 value, and of an entry below 2^-31 of its row's
// largest what lies above 2^-39 of it. A row of zeros stays one; NaN and infinity stay what they
// are. What follows a norm does not see the powers.
#pragma once
#include "core/view.h"

namespace semobridge {

struct ScaleRowsArgs {
  ConstMatrix x;  // [N, K] bfloat16
  Matrix out;     // [N, K] float16
};

// Runs on `stream` (a cudaStream_t) of `device`, asynchronously, without allocation; throws
// std::invalid_argument for other types and shapes, std::runtime_error when the launch is refused.
void scale_rows_cuda(const ScaleRowsArgs& args, int device, void* stream);

}  // namespace semobridge

// The second half of a projection that several blocks share: each leaves raw sums of its columns,
// and whichever takes the last ticket of its rows finds all of them written and normalises.
#pragma once
#include "core/launch.cuh"
#include "core/row_norm.cuh"

namespace semobridge {

// All threads of a block of whole warps call it; `x` is gridDim's axis of columns, `y` that of
// rows.
template <class X>
__device__ __forceinline__ void normalize_by_last_block(const float* raw, int64_t cols,
                                                        int64_t row0, int rows, float scale, X* out,
                                                        int64_t out_stride, float* norms,
                                                        int* tickets) {
  SB_SHARED(int, is_last, 1);
  __threadfence();  // this thread's sums are visible to every block that sees its ticket
  __syncthreads();
  if (threadIdx.x == 0) {
    is_last[0] = atomicAdd(tickets + blockIdx.y, 1) == static_cast<int>(gridDim.x) - 1;
  }
  __syncthreads();
  if (is_last[0] != 1) return;
  __threadfence();
  const int lane = threadIdx.x % kWarp;
  const int warps = blockDim.x / kWarp;
  for (int r = threadIdx.x / kWarp; r < rows; r += warps) {
    const float* y = raw + (row0 + r) * cols;
    // Past L1: other multiprocessors have written these.
    const float norm = warp_norm<float>(cols, [&](int64_t i) { return __ldcg(y + i); });
    const float factor = unit_factor(norm, scale);
    if (norms != nullptr && lane == 0) norms[row0 + r] = norm;
    X* target = out + (row0 + r) * out_stride;
    for (int64_t i = lane; i < cols; i += kWarp) narrow(__ldcg(y + i) * factor, target + i);
  }
  if (threadIdx.x == 0) tickets[blockIdx.y] = 0;  // ready for the next launch of this stream
}

}  // namespace semobridge

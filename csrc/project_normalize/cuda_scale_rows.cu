// One warp per row: 16 bytes a lane where everything is aligned, a pass for the largest entry and
// one that writes, from L1. A power of two and not the largest entry itself: no bit of x is lost.
#include <cmath>

#include "core/device.cuh"
#include "core/launch.cuh"
#include "project_normalize/cuda_scale_rows.h"

namespace semobridge {
namespace {

constexpr char kOp[] = "scale_rows";
constexpr int kWarpsPerBlock = 8;
constexpr int kTop = 14;    // the exponent of a row's largest entry; float16 ends below 2^16
constexpr int kMost = 127;  // of a factor in float32; rows below bfloat16's normal range come lower

template <int N>
__global__ void __launch_bounds__(kWarp* kWarpsPerBlock)
    scale_rows_fwd_kernel(const __nv_bfloat16* __restrict__ x, int64_t x_stride,
                          __half* __restrict__ out, int64_t out_stride, int64_t rows,
                          int64_t cols) {
  const int lane = threadIdx.x % kWarp;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + threadIdx.x / kWarp;
  if (row >= rows) return;
  const __nv_bfloat16* source = x + row * x_stride;
  float value[N], largest = 0;
#pragma unroll 4
  for (int64_t i = lane * N; i < cols; i += kWarp * N) {
    load(source + i, value);
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const float magnitude = value[j] < 0 ? -value[j] : value[j];
      largest = magnitude > largest ? magnitude : largest;
    }
  }
  largest = warp_max(largest);
  float factor = 1;
  if (largest > 0 && largest < INFINITY) {
    const int wanted = kTop - ilogbf(largest);
    factor = ldexpf(1.0f, wanted < kMost ? wanted : kMost);
  }
  __half* target = out + row * out_stride;
#pragma unroll 4
  for (int64_t i = lane * N; i < cols; i += kWarp * N) {
    load(source + i, value);
#pragma unroll
    for (int j = 0; j < N; ++j) value[j] *= factor;
    store(value, target + i);
  }
}

template <int N>
void launch_typed(const ScaleRowsArgs& a, int device, void* stream) {
  launch(kOp, scale_rows_fwd_kernel<N>, blocks_for(kOp, a.x.rows, kWarpsPerBlock),
         kWarp * kWarpsPerBlock, device, stream, static_cast<const __nv_bfloat16*>(a.x.data),
         a.x.row_stride, static_cast<__half*>(a.out.data), a.out.row_stride, a.x.rows, a.x.cols);
}

}  // namespace

void scale_rows_cuda(const ScaleRowsArgs& a, int device, void* stream) {
  if (a.x.dtype != DType::kBFloat16 || a.out.dtype != DType::kFloat16) {
    throw std::invalid_argument("scale_rows: x must be bfloat16 and out float16");
  }
  if (a.x.rows != a.out.rows || a.x.cols != a.out.cols) {
    throw std::invalid_argument("scale_rows: out must have the shape of x");
  }
  if (a.x.rows == 0 || a.x.cols == 0) return;
  const bool aligned = rows_aligned(a.x.data, a.x.dtype, a.x.cols, a.x.row_stride) &&
                       rows_aligned(a.out.data, a.out.dtype, a.x.cols, a.out.row_stride);
  if (aligned) return launch_typed<kVector<__half>>(a, device, stream);
  launch_typed<1>(a, device, stream);
}

}  // namespace semobridge

// One warp per output column and block of rows. A lane reads 16 bytes of the column and of every
// row at a time; at K = 512 the whole column is four such reads.
#include "core/last_block.cuh"
#include "project_normalize/cuda.h"

namespace semobridge {
namespace {

constexpr char kOp[] = "project_normalize";
constexpr int kRows = static_cast<int>(kProjectNormalizeRows);
constexpr int kWarpsPerBlock = 4;  // 128 blocks at 512 columns: about one per multiprocessor
constexpr int kBlocks = 8;         // per multiprocessor: room for 64 registers, so that none spill

template <class X, class W, int kStep>
__global__ void __launch_bounds__(kWarp* kWarpsPerBlock, kBlocks)
    project_normalize_fwd_kernel(const X* __restrict__ x, int64_t x_stride,
                                 const W* __restrict__ matrix, int64_t matrix_stride,
                                 const float* __restrict__ bias, int64_t bias_stride,
                                 bool normalize, float scale, X* __restrict__ out,
                                 int64_t out_stride, float* __restrict__ norms, float* raw,
                                 int* tickets, int64_t n, int64_t k, int64_t cols) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t col = static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + warp;
  const int64_t row0 = static_cast<int64_t>(blockIdx.y) * kRows;
  const int rows = n - row0 < kRows ? static_cast<int>(n - row0) : kRows;
  if (col < cols) {
    float sum[kRows] = {};
    for (int64_t i = lane * kStep; i < k; i += kWarp * kStep) {
      float weight[kStep];
      load(matrix + col * matrix_stride + i, weight);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        if (r >= rows) break;
        float value[kStep];
        load(x + (row0 + r) * x_stride + i, value);
#pragma unroll
        for (int j = 0; j < kStep; ++j) sum[r] += value[j] * weight[j];
      }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (r >= rows) break;
      float y = warp_sum(sum[r]);
      if (lane != 0) continue;
      if (bias != nullptr) y += bias[(row0 + r) * bias_stride + col];
      if (normalize) {
        raw[(row0 + r) * cols + col] = y;
      } else {
        narrow(y * scale, out + (row0 + r) * out_stride + col);
      }
    }
  }
  if (normalize) {
    normalize_by_last_block(raw, cols, row0, rows, scale, out, out_stride, norms, tickets);
  }
}

template <class X, class W, int kStep>
void launch_typed(const ProjectNormalizeCudaArgs& a, int device, void* stream) {
  const dim3 grid(blocks_for(kOp, a.out.cols, kWarpsPerBlock),
                  blocks_for(kOp, a.x.rows, kProjectNormalizeRows));
  launch(kOp, project_normalize_fwd_kernel<X, W, kStep>, grid, kWarp * kWarpsPerBlock, device,
         stream, static_cast<const X*>(a.x.data), a.x.row_stride,
         static_cast<const W*>(a.matrix.data), a.matrix.row_stride,
         static_cast<const float*>(a.bias.data), a.bias.row_stride, a.normalize,
         static_cast<float>(a.scale), static_cast<X*>(a.out.data), a.out.row_stride, a.norms, a.raw,
         a.tickets, a.x.rows, a.x.cols, a.out.cols);
}

template <class X, class W>
void launch_aligned(const ProjectNormalizeCudaArgs& a, int device, void* stream) {
  const bool aligned = rows_aligned(a.x.data, a.x.dtype, a.x.cols, a.x.row_stride) &&
                       rows_aligned(a.matrix.data, a.matrix.dtype, a.x.cols, a.matrix.row_stride);
  if (aligned) return launch_typed<X, W, kVector<X>>(a, device, stream);
  launch_typed<X, W, 1>(a, device, stream);
}

}  // namespace

void project_normalize_cuda(const ProjectNormalizeCudaArgs& a, int device, void* stream) {
  if (a.x.rows == 0 || a.out.cols == 0) return;
  with_storage(kOp, a.x.dtype, [&](auto storage) {
    using X = typename decltype(storage)::type;
    if (a.matrix.dtype == a.x.dtype) return launch_aligned<X, X>(a, device, stream);
    if (a.matrix.dtype == DType::kFloat32) return launch_aligned<X, float>(a, device, stream);
    throw std::invalid_argument(
        "project_normalize: the matrix must be float32 or of the dtype of x");
  });
}

}  // namespace semobridge

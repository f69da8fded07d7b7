// One warp per row: coalesced reads, the sum of squares reduced by shuffles, further reads from
// cache. Rows are 2-5 KiB, so those passes hit L1, and nothing needs shared memory or a block-wide
// barrier.
#include "core/launch.cuh"
#include "core/row_norm.cuh"
#include "project_normalize/cuda_normalize_rows.h"

namespace semobridge {
namespace {

constexpr char kOp[] = "normalize_rows";
constexpr int kWarpsPerBlock = 8;

template <class T, class Out>
__global__ void __launch_bounds__(kWarp* kWarpsPerBlock)
    normalize_rows_fwd_kernel(const T* __restrict__ x, int64_t x_stride, const T* __restrict__ bias,
                              int64_t bias_stride, bool normalize, T scale, Out* __restrict__ out,
                              int64_t out_stride, T* __restrict__ norms, int64_t rows,
                              int64_t cols) {
  const int lane = threadIdx.x % kWarp;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + threadIdx.x / kWarp;
  if (row >= rows) return;
  const T* source = x + row * x_stride;
  const T* offset = bias == nullptr ? nullptr : bias + row * bias_stride;
  const auto value = [&](int64_t i) { return source[i] + (offset == nullptr ? T(0) : offset[i]); };
  T factor = scale;
  if (normalize) {
    const T norm = warp_norm<T>(cols, value);
    factor = unit_factor(norm, scale);
    if (norms != nullptr && lane == 0) norms[row] = norm;
  }
  Out* target = out + row * out_stride;
  for (int64_t i = lane; i < cols; i += kWarp) narrow(value(i) * factor, target + i);
}

template <class T, class Out>
void launch_typed(const NormalizeRowsArgs& a, int device, void* stream) {
  launch(kOp, normalize_rows_fwd_kernel<T, Out>, blocks_for(kOp, a.x.rows, kWarpsPerBlock),
         kWarp * kWarpsPerBlock, device, stream, static_cast<const T*>(a.x.data), a.x.row_stride,
         static_cast<const T*>(a.bias.data), a.bias.row_stride, a.normalize,
         static_cast<T>(a.scale), static_cast<Out*>(a.out.data), a.out.row_stride,
         static_cast<T*>(a.norms), a.x.rows, a.x.cols);
}

}  // namespace

void normalize_rows_cuda(const NormalizeRowsArgs& a, int device, void* stream) {
  if (a.x.rows == 0 || a.x.cols == 0) return;
  if (a.x.dtype == DType::kFloat64) return launch_typed<double, double>(a, device, stream);
  if (a.x.dtype != DType::kFloat32) {
    throw std::invalid_argument("normalize_rows: x must be float32 or float64");
  }
  with_storage(kOp, a.out.dtype, [&](auto out) {
    launch_typed<float, typename decltype(out)::type>(a, device, stream);
  });
}

}  // namespace semobridge

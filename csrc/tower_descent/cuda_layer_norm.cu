#include "core/launch.cuh"
#include "tower_descent/cuda_layer_norm.cuh"

namespace semobridge {
namespace {

constexpr char kOp[] = "layer_norm";

template <class T, int kStep>
__global__ void __launch_bounds__(kWarp* kNormWarps)
    layer_norm_fwd_kernel(const T* x, int64_t x_stride, const T* __restrict__ delta,
                          int64_t delta_stride, T* total, int64_t total_stride,
                          const float* __restrict__ weight, const float* __restrict__ bias,
                          float eps, T* __restrict__ y, int64_t y_stride, float* __restrict__ mean,
                          float* __restrict__ rstd, int64_t rows, int64_t width) {
  layer_norm_rows<T, kStep>(blockIdx.x, x, x_stride, delta, delta_stride, total, total_stride,
                            weight, bias, eps, y, y_stride, mean, rstd, rows, width);
}

template <class T, int kStep>
__global__ void __launch_bounds__(kWarp* kNormWarps)
    layer_norm_bwd_kernel(const T* __restrict__ x, int64_t x_stride, const T* __restrict__ grad_y,
                          int64_t grad_y_stride, const float* __restrict__ weight,
                          const float* __restrict__ mean, const float* __restrict__ rstd,
                          const T* residual, int64_t residual_stride, T* grad_x,
                          int64_t grad_x_stride, int64_t rows, int64_t width) {
  layer_norm_grad_rows<T, kStep>(blockIdx.x, x, x_stride, grad_y, grad_y_stride, weight, mean, rstd,
                                 residual, residual_stride, grad_x, grad_x_stride, rows, width);
}

template <class T, int kStep>
void launch_forward(const LayerNormCudaArgs& a, int device, void* stream) {
  launch(kOp, layer_norm_fwd_kernel<T, kStep>, blocks_for(kOp, a.x.rows, kNormWarps),
         kWarp * kNormWarps, device, stream, static_cast<const T*>(a.x.data), a.x.row_stride,
         static_cast<const T*>(a.delta.data), a.delta.row_stride, static_cast<T*>(a.total.data),
         a.total.row_stride, a.weight, a.bias, static_cast<float>(a.eps), static_cast<T*>(a.y.data),
         a.y.row_stride, a.mean, a.rstd, a.x.rows, a.x.cols);
}

template <class T, int kStep>
void launch_backward(const LayerNormGradCudaArgs& a, int device, void* stream) {
  launch(kOp, layer_norm_bwd_kernel<T, kStep>, blocks_for(kOp, a.x.rows, kNormWarps),
         kWarp * kNormWarps, device, stream, static_cast<const T*>(a.x.data), a.x.row_stride,
         static_cast<const T*>(a.grad_y.data), a.grad_y.row_stride, a.weight, a.mean, a.rstd,
         static_cast<const T*>(a.residual.data), a.residual.row_stride,
         static_cast<T*>(a.grad_x.data), a.grad_x.row_stride, a.x.rows, a.x.cols);
}

template <class M>
bool aligned(const M& m) {
  return rows_aligned(m.data, m.dtype, m.cols, m.row_stride);
}

}  // namespace

void layer_norm_cuda(const LayerNormCudaArgs& a, int device, void* stream) {
  if (a.x.rows == 0 || a.x.cols == 0) return;
  with_storage(kOp, a.x.dtype, [&](auto storage) {
    using T = typename decltype(storage)::type;
    if (aligned(a.x) && aligned(a.y) && is_aligned(a.weight) && is_aligned(a.bias) &&
        (a.delta.data == nullptr || (aligned(a.delta) && aligned(a.total)))) {
      return launch_forward<T, kVector<T>>(a, device, stream);
    }
    launch_forward<T, 1>(a, device, stream);
  });
}

void layer_norm_grad_cuda(const LayerNormGradCudaArgs& a, int device, void* stream) {
  if (a.x.rows == 0 || a.x.cols == 0) return;
  with_storage(kOp, a.x.dtype, [&](auto storage) {
    using T = typename decltype(storage)::type;
    if (aligned(a.x) && aligned(a.grad_y) && aligned(a.grad_x) && is_aligned(a.weight) &&
        (a.residual.data == nullptr || aligned(a.residual))) {
      return launch_backward<T, kVector<T>>(a, device, stream);
    }
    launch_backward<T, 1>(a, device, stream);
  });
}

}  // namespace semobridge

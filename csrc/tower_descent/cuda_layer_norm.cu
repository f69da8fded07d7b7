// One warp per row: widths are 192 to 1280, so a row is a few vectors per lane and the second pass
// reads it from L1.
#include "core/device.cuh"
#include "core/launch.cuh"
#include "tower_descent/cuda_layer_norm.h"

namespace semobridge {
namespace {

constexpr char kOp[] = "layer_norm";
constexpr int kWarpsPerBlock = 4;

template <class T, int kStep>
__global__ void __launch_bounds__(kWarp* kWarpsPerBlock)
    layer_norm_fwd_kernel(const T* x, int64_t x_stride, const T* __restrict__ delta,
                          int64_t delta_stride, T* total, int64_t total_stride,
                          const float* __restrict__ weight, const float* __restrict__ bias,
                          float eps, T* __restrict__ y, int64_t y_stride, float* __restrict__ mean,
                          float* __restrict__ rstd, int64_t rows, int64_t width) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + threadIdx.x / kWarp;
  if (row >= rows) return;
  const int64_t begin = threadIdx.x % kWarp * kStep;
  const T* source = x + row * x_stride;
  float sum = 0, value[kStep];
  if (delta != nullptr) {
    float other[kStep];
    for (int64_t i = begin; i < width; i += kWarp * kStep) {
      load(source + i, value);
      load(delta + row * delta_stride + i, other);
#pragma unroll
      for (int j = 0; j < kStep; ++j) value[j] += other[j];
      store(value, total + row * total_stride + i);
    }
    source = total + row * total_stride;  // each lane reads what it wrote, as it was rounded
  }
  for (int64_t i = begin; i < width; i += kWarp * kStep) {
    load(source + i, value);
#pragma unroll
    for (int j = 0; j < kStep; ++j) sum += value[j];
  }
  const float m = warp_sum(sum) / static_cast<float>(width);
  float squares = 0;
  for (int64_t i = begin; i < width; i += kWarp * kStep) {
    load(source + i, value);
#pragma unroll
    for (int j = 0; j < kStep; ++j) squares += (value[j] - m) * (value[j] - m);
  }
  const float r = 1.0f / sqrtf(warp_sum(squares) / static_cast<float>(width) + eps);
  float w[kStep], b[kStep];
  for (int64_t i = begin; i < width; i += kWarp * kStep) {
    load(source + i, value);
    load(weight + i, w);
    load(bias + i, b);
#pragma unroll
    for (int j = 0; j < kStep; ++j) value[j] = (value[j] - m) * r * w[j] + b[j];
    store(value, y + row * y_stride + i);
  }
  if (begin == 0) {
    mean[row] = m;
    rstd[row] = r;
  }
}

template <class T, int kStep>
__global__ void __launch_bounds__(kWarp* kWarpsPerBlock)
    layer_norm_bwd_kernel(const T* __restrict__ x, int64_t x_stride, const T* __restrict__ grad_y,
                          int64_t grad_y_stride, const float* __restrict__ weight,
                          const float* __restrict__ mean, const float* __restrict__ rstd,
                          const T* residual, int64_t residual_stride, T* grad_x,
                          int64_t grad_x_stride, int64_t rows, int64_t width) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + threadIdx.x / kWarp;
  if (row >= rows) return;
  const int64_t begin = threadIdx.x % kWarp * kStep;
  const T* source = x + row * x_stride;
  const T* upstream = grad_y + row * grad_y_stride;
  const float m = mean[row], r = rstd[row];
  float sum_u = 0, sum_ux = 0, value[kStep], u[kStep], w[kStep];
  for (int64_t i = begin; i < width; i += kWarp * kStep) {
    load(source + i, value);
    load(upstream + i, u);
    load(weight + i, w);
#pragma unroll
    for (int j = 0; j < kStep; ++j) {
      sum_u += u[j] * w[j];
      sum_ux += u[j] * w[j] * ((value[j] - m) * r);
    }
  }
  const float mean_u = warp_sum(sum_u) / static_cast<float>(width);
  const float mean_ux = warp_sum(sum_ux) / static_cast<float>(width);
  for (int64_t i = begin; i < width; i += kWarp * kStep) {
    load(source + i, value);
    load(upstream + i, u);
    load(weight + i, w);
    float g[kStep] = {};
    if (residual != nullptr) load(residual + row * residual_stride + i, g);
#pragma unroll
    for (int j = 0; j < kStep; ++j) {
      g[j] += (u[j] * w[j] - mean_u - (value[j] - m) * r * mean_ux) * r;
    }
    store(g, grad_x + row * grad_x_stride + i);
  }
}

template <class T, int kStep>
void launch_forward(const LayerNormCudaArgs& a, int device, void* stream) {
  launch(kOp, layer_norm_fwd_kernel<T, kStep>, blocks_for(kOp, a.x.rows, kWarpsPerBlock),
         kWarp * kWarpsPerBlock, device, stream, static_cast<const T*>(a.x.data), a.x.row_stride,
         static_cast<const T*>(a.delta.data), a.delta.row_stride, static_cast<T*>(a.total.data),
         a.total.row_stride, a.weight, a.bias, static_cast<float>(a.eps), static_cast<T*>(a.y.data),
         a.y.row_stride, a.mean, a.rstd, a.x.rows, a.x.cols);
}

template <class T, int kStep>
void launch_backward(const LayerNormGradCudaArgs& a, int device, void* stream) {
  launch(kOp, layer_norm_bwd_kernel<T, kStep>, blocks_for(kOp, a.x.rows, kWarpsPerBlock),
         kWarp * kWarpsPerBlock, device, stream, static_cast<const T*>(a.x.data), a.x.row_stride,
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

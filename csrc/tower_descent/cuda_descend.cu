#include "core/launch.cuh"
#include "tower_descent/cuda_descend.cuh"

namespace semobridge {
namespace {

constexpr int kThreads = 256;

template <class T>
__global__ void __launch_bounds__(kWarp* kLossWarps)
    cosine_loss_kernel(const T* __restrict__ features, int64_t features_stride,
                       const float* __restrict__ targets, int64_t targets_stride, float grad_scale,
                       const int64_t* __restrict__ step, int64_t* __restrict__ step_now,
                       float* __restrict__ losses, T* __restrict__ grad, int64_t grad_stride,
                       float* __restrict__ unit, int64_t samples, int64_t width) {
  cosine_loss_rows(blockIdx.x, features, features_stride, targets, targets_stride, grad_scale, step,
                   step_now, losses, grad, grad_stride, unit, samples, width);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    adamw_kernel(const T* __restrict__ grad_x, int64_t grad_stride,
                 const int32_t* __restrict__ source, int64_t slots, float* __restrict__ tokens,
                 float* __restrict__ exp_avg, float* __restrict__ exp_avg_sq,
                 const float* __restrict__ rates, const float* __restrict__ corrections,
                 const int64_t* __restrict__ step_now, int64_t* __restrict__ step,
                 AdamwFactors<float> f, float grad_factor, const float* __restrict__ base,
                 int64_t base_samples, T* __restrict__ x, int64_t x_stride, int64_t samples,
                 int64_t vectors, int64_t width) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  adamw_element(at, grad_x, grad_stride, source, slots, tokens, exp_avg, exp_avg_sq, rates,
                corrections, step_now, step, f, grad_factor, base, base_samples, x, x_stride,
                samples, vectors, width);
}

}  // namespace

void cosine_loss_cuda(const CosineLossCudaArgs& a, int device, void* stream) {
  constexpr char kOp[] = "cosine_loss";
  if (a.features.rows == 0) return;
  with_storage(kOp, a.features.dtype, [&](auto storage) {
    using T = typename decltype(storage)::type;
    launch(kOp, cosine_loss_kernel<T>, blocks_for(kOp, a.features.rows, kLossWarps),
           kWarp * kLossWarps, device, stream, static_cast<const T*>(a.features.data),
           a.features.row_stride, static_cast<const float*>(a.targets.data), a.targets.row_stride,
           static_cast<float>(a.grad_scale), a.step, a.step_now, a.losses,
           static_cast<T*>(a.grad.data), a.grad.row_stride, a.unit, a.features.rows,
           a.features.cols);
  });
}

void adamw_cuda(const AdamwCudaArgs& a, int device, void* stream) {
  constexpr char kOp[] = "adamw";
  const int64_t size = a.samples * a.vectors * a.width;
  if (size == 0) return;
  const AdamwFactors<float> f = factors_of(a);
  with_storage(kOp, a.grad_x.dtype, [&](auto storage) {
    using T = typename decltype(storage)::type;
    launch(kOp, adamw_kernel<T>, blocks_for(kOp, size, kThreads), kThreads, device, stream,
           static_cast<const T*>(a.grad_x.data), a.grad_x.row_stride, a.source, a.slots, a.tokens,
           a.exp_avg, a.exp_avg_sq, a.rates, a.corrections, a.step_now, a.step, f,
           static_cast<float>(a.grad_factor), a.base, a.base_samples, static_cast<T*>(a.x.data),
           a.x.row_stride, a.samples, a.vectors, a.width);
  });
}

}  // namespace semobridge

// cosine_loss: one warp per sample. adamw: one thread per element of v, which also gathers the
// gradient from the slots that v feeds and writes their next input, so that a step has no copies.
#include "core/adamw.h"
#include "core/device.cuh"
#include "core/launch.cuh"
#include "tower_descent/cuda_descend.h"

namespace semobridge {
namespace {

constexpr int kWarpsPerBlock = 4;
constexpr int kThreads = 256;

template <class T>
__global__ void __launch_bounds__(kWarp* kWarpsPerBlock)
    cosine_loss_kernel(const T* __restrict__ features, int64_t features_stride,
                       const float* __restrict__ targets, int64_t targets_stride, float grad_scale,
                       const int64_t* __restrict__ step, int64_t* __restrict__ step_now,
                       float* __restrict__ losses, T* __restrict__ grad, int64_t grad_stride,
                       float* __restrict__ unit, int64_t samples, int64_t width) {
  const int lane = threadIdx.x % kWarp;
  const int64_t s = static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + threadIdx.x / kWarp;
  if (s >= samples) return;
  const T* t = features + s * features_stride;
  const float* f = targets + s * targets_stride;
  float squares = 0, product = 0, target_squares = 0;
  for (int64_t i = lane; i < width; i += kWarp) {
    const float value = widen(t[i]);
    squares += value * value;
    product += value * f[i];
    target_squares += f[i] * f[i];
  }
  squares = warp_sum(squares);
  product = warp_sum(product);
  target_squares = warp_sum(target_squares);
  const float inverse = squares == 0 ? 0.0f : 1.0f / sqrtf(squares);
  const float cosine = product * inverse;
  const float factor = grad_scale * inverse;
  for (int64_t i = lane; i < width; i += kWarp) {
    const float hat = widen(t[i]) * inverse;
    if (unit != nullptr) unit[s * width + i] = hat;
    narrow(target_squares == 0 ? 0.0f : (cosine * hat - f[i]) * factor, grad + s * grad_stride + i);
  }
  if (lane != 0) return;
  losses[*step * samples + s] = 1.0f - cosine;
  if (s == 0) *step_now = *step;
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
  if (at >= samples * vectors * width) return;
  const int64_t i = at % width, r = at / width % vectors, s = at / width / vectors;
  float g = 0;
  for (int64_t slot = 0; slot < slots; ++slot) {
    if (source[slot] == r) g += widen(grad_x[(slot * samples + s) * grad_stride + i]);
  }
  g *= grad_factor;
  const int64_t now = *step_now;
  f.rate = rates[now];
  f.correction = corrections[now];
  const float v = adamw_value(f, g, tokens[at], exp_avg[at], exp_avg_sq[at]);
  tokens[at] = v;
  for (int64_t slot = 0; slot < slots && x != nullptr; ++slot) {
    if (source[slot] != r) continue;
    const int64_t constant = slot * base_samples + (base_samples == 1 ? 0 : s);
    narrow(base[constant * width + i] + v, x + (slot * samples + s) * x_stride + i);
  }
  if (at == 0) *step = now + 1;
}

}  // namespace

void cosine_loss_cuda(const CosineLossCudaArgs& a, int device, void* stream) {
  constexpr char kOp[] = "cosine_loss";
  if (a.features.rows == 0) return;
  with_storage(kOp, a.features.dtype, [&](auto storage) {
    using T = typename decltype(storage)::type;
    launch(kOp, cosine_loss_kernel<T>, blocks_for(kOp, a.features.rows, kWarpsPerBlock),
           kWarp * kWarpsPerBlock, device, stream, static_cast<const T*>(a.features.data),
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
  const AdamwFactors<float> f =
      adamw_factors<float>(1 - a.lr * a.weight_decay, a.beta1, a.beta2, a.eps);
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

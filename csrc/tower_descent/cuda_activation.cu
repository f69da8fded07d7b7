// Elementwise, bound by memory: the backward pass makes the slope anew from the argument, which the
// forward pass leaves where the product put it. An exponential is cheaper than writing a slope and
// reading it back: five arrays are moved in place of six, two of them in the forward pass.
#include "core/launch.cuh"
#include "tower_descent/cuda_activation.cuh"
#include "tower_descent/cuda_activation.h"

namespace semobridge {
namespace {

constexpr int kThreads = 256;

template <class T, int kStep, Activation kKind>
__global__ void __launch_bounds__(kThreads)
    activate_fwd_kernel(const T* x, int64_t x_stride, T* y, int64_t y_stride, int64_t rows,
                        int64_t cols) {
  const int64_t packs = cols / kStep;  // kStep divides cols
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= rows * packs) return;
  const int64_t row = i / packs, col = i % packs * kStep;
  float h[kStep];
  load(x + row * x_stride + col, h);
#pragma unroll
  for (int j = 0; j < kStep; ++j) h[j] = activated<kKind>(h[j]);
  store(h, y + row * y_stride + col);
}

template <class T, int kStep, Activation kKind>
__global__ void __launch_bounds__(kThreads)
    activate_bwd_kernel(const T* __restrict__ x, int64_t x_stride, T* grad, int64_t grad_stride,
                        int64_t rows, int64_t cols) {
  const int64_t packs = cols / kStep;  // kStep divides cols
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= rows * packs) return;
  const int64_t row = i / packs, col = i % packs * kStep;
  float h[kStep], g[kStep];
  load(x + row * x_stride + col, h);
  load(grad + row * grad_stride + col, g);
#pragma unroll
  for (int j = 0; j < kStep; ++j) g[j] *= activation_slope<kKind>(h[j]);
  store(g, grad + row * grad_stride + col);
}

template <class M>
bool aligned(const M& m) {
  return rows_aligned(m.data, m.dtype, m.cols, m.row_stride);
}

// Calls f with the storage type, the elements of a load and the kind.
template <class F>
void with_shape(const char* op, const ConstMatrix& x, const Matrix& other, Activation kind, F f) {
  const auto with_kind = [&](auto storage, auto step) {
    switch (kind) {
      case Activation::kGelu:
        return f(storage, step, std::integral_constant<Activation, Activation::kGelu>{});
      case Activation::kGeluTanh:
        return f(storage, step, std::integral_constant<Activation, Activation::kGeluTanh>{});
      case Activation::kQuickGelu:
        return f(storage, step, std::integral_constant<Activation, Activation::kQuickGelu>{});
    }
  };
  with_storage(op, x.dtype, [&](auto storage) {
    using T = typename decltype(storage)::type;
    if (aligned(x) && aligned(other)) {
      return with_kind(storage, std::integral_constant<int, kVector<T>>{});
    }
    with_kind(storage, std::integral_constant<int, 1>{});
  });
}

}  // namespace

void activate_cuda(const ActivateCudaArgs& a, int device, void* stream) {
  constexpr char kOp[] = "activate";
  if (a.x.rows == 0 || a.x.cols == 0) return;
  with_shape(kOp, a.x, a.y, a.kind, [&](auto storage, auto step, auto kind) {
    using T = typename decltype(storage)::type;
    constexpr int kStep = decltype(step)::value;
    launch(kOp, activate_fwd_kernel<T, kStep, decltype(kind)::value>,
           blocks_for(kOp, a.x.rows * (a.x.cols / kStep), kThreads), kThreads, device, stream,
           static_cast<const T*>(a.x.data), a.x.row_stride, static_cast<T*>(a.y.data),
           a.y.row_stride, a.x.rows, a.x.cols);
  });
}

void activate_grad_cuda(const ActivateGradCudaArgs& a, int device, void* stream) {
  constexpr char kOp[] = "activate_grad";
  if (a.x.rows == 0 || a.x.cols == 0) return;
  with_shape(kOp, a.x, a.grad, a.kind, [&](auto storage, auto step, auto kind) {
    using T = typename decltype(storage)::type;
    constexpr int kStep = decltype(step)::value;
    launch(kOp, activate_bwd_kernel<T, kStep, decltype(kind)::value>,
           blocks_for(kOp, a.x.rows * (a.x.cols / kStep), kThreads), kThreads, device, stream,
           static_cast<const T*>(a.x.data), a.x.row_stride, static_cast<T*>(a.grad.data),
           a.grad.row_stride, a.x.rows, a.x.cols);
  });
}

}  // namespace semobridge

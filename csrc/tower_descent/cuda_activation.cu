// Elementwise, bound by memory: the derivative is made where the argument is in a register, because
// a second visit in the backward pass would cost another read and the exponential once more.
#include "core/device.cuh"
#include "core/launch.cuh"
#include "tower_descent/cuda_activation.h"

namespace semobridge {
namespace {

constexpr char kOp[] = "activate";
constexpr int kThreads = 256;

template <Activation kKind>
__device__ __forceinline__ void activate_one(float h, float* y, float* slope) {
  if constexpr (kKind == Activation::kGelu) {
    const float cdf = 0.5f * erfcf(-h * 0.707106781f);  // erfc keeps the digits of the far tail
    *y = h * cdf;
    *slope = cdf + h * 0.398942280f * expf(-0.5f * h * h);
  } else {
    float s = 1.702f * h, ds = 1.702f;
    if constexpr (kKind == Activation::kGeluTanh) {
      s = 1.59576912f * (h + 0.044715f * h * h * h);
      ds = 1.59576912f * (1.0f + 0.134145f * h * h);
    }
    const float sigma = 1.0f / (1.0f + expf(-s));
    *y = h * sigma;
    // Where σ is 0 or 1 to the last bit, ds·h may be infinite: 0·∞ would be NaN.
    const float bend = sigma * (1.0f - sigma);
    *slope = bend == 0.0f ? sigma + 0.0f * h : sigma + h * bend * ds;
  }
}

template <class T, int kStep, Activation kKind>
__global__ void __launch_bounds__(kThreads)
    activate_fwd_kernel(const T* x, int64_t x_stride, const float* __restrict__ bias, T* y,
                        int64_t y_stride, T* slope, int64_t slope_stride, int64_t rows,
                        int64_t cols) {
  const int64_t packs = cols / kStep;  // kStep divides cols
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= rows * packs) return;
  const int64_t row = i / packs, col = i % packs * kStep;
  float h[kStep], d[kStep];
  load(x + row * x_stride + col, h);
  if (bias != nullptr) {
    load(bias + col, d);
#pragma unroll
    for (int j = 0; j < kStep; ++j) h[j] += d[j];
  }
#pragma unroll
  for (int j = 0; j < kStep; ++j) activate_one<kKind>(h[j], &h[j], &d[j]);
  store(h, y + row * y_stride + col);
  if (slope != nullptr) store(d, slope + row * slope_stride + col);
}

template <class T, int kStep, Activation kKind>
void launch_kind(const ActivateCudaArgs& a, int device, void* stream) {
  launch(kOp, activate_fwd_kernel<T, kStep, kKind>,
         blocks_for(kOp, a.x.rows * (a.x.cols / kStep), kThreads), kThreads, device, stream,
         static_cast<const T*>(a.x.data), a.x.row_stride, a.bias, static_cast<T*>(a.y.data),
         a.y.row_stride, static_cast<T*>(a.slope.data), a.slope.row_stride, a.x.rows, a.x.cols);
}

template <class T, int kStep>
void launch_typed(const ActivateCudaArgs& a, int device, void* stream) {
  switch (a.kind) {
    case Activation::kGelu:
      return launch_kind<T, kStep, Activation::kGelu>(a, device, stream);
    case Activation::kGeluTanh:
      return launch_kind<T, kStep, Activation::kGeluTanh>(a, device, stream);
    case Activation::kQuickGelu:
      return launch_kind<T, kStep, Activation::kQuickGelu>(a, device, stream);
  }
}

template <class M>
bool aligned(const M& m) {
  return rows_aligned(m.data, m.dtype, m.cols, m.row_stride);
}

}  // namespace

void activate_cuda(const ActivateCudaArgs& a, int device, void* stream) {
  if (a.x.rows == 0 || a.x.cols == 0) return;
  with_storage(kOp, a.x.dtype, [&](auto storage) {
    using T = typename decltype(storage)::type;
    if (aligned(a.x) && aligned(a.y) && (a.slope.data == nullptr || aligned(a.slope)) &&
        is_aligned(a.bias)) {
      return launch_typed<T, kVector<T>>(a, device, stream);
    }
    launch_typed<T, 1>(a, device, stream);
  });
}

}  // namespace semobridge

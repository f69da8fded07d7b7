// One warp per shot or class row, read in vectors where alignment allows; the second pass over a
// row of 2-5 KiB hits L1. Sums over a class are a launch of their own: rows spread over the whole
// device whatever the classes' sizes, and no atomics make the order a matter of luck.
#include "bridge_training/cuda.h"
#include "bridge_training/cuda_halves.cuh"
#include "core/device.cuh"
#include "core/launch.cuh"

namespace semobridge {
namespace {

constexpr int kWarpsPerBlock = 4;
constexpr int kColumns = 128;

__device__ __forceinline__ int64_t own_row() {
  return static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + threadIdx.x / kWarp;
}

__device__ __forceinline__ float reciprocal(float x) { return x == 0 ? 0.0f : 1.0f / x; }

// Not fmaxf: NaN has to stay NaN.
__device__ __forceinline__ float root(float x) { return sqrtf(x < 0 ? 0.0f : x); }

// a·b of two rows, the same in every lane.
template <int kStep>
__device__ __forceinline__ float dot_rows(const float* a, const float* b, int64_t width) {
  float sum = 0, x[kStep], y[kStep];
  for (int64_t i = threadIdx.x % kWarp * kStep; i < width; i += kWarp * kStep) {
    load(a + i, x);
    load(b + i, y);
#pragma unroll
    for (int j = 0; j < kStep; ++j) sum += x[j] * y[j];
  }
  return warp_sum(sum);
}

template <int kStep>
__global__ void __launch_bounds__(kWarp* kWarpsPerBlock)
    shot_norms_kernel(const int64_t* __restrict__ labels, float* e, const float* __restrict__ tau,
                      float* __restrict__ r, int64_t rows, int64_t width) {
  const int64_t n = own_row();
  if (n >= rows) return;
  const int64_t begin = threadIdx.x % kWarp * kStep;
  float* row = e + n * width;
  const float* bias = tau == nullptr ? nullptr : tau + labels[n] * width;
  float sum = 0, x[kStep], y[kStep];
  for (int64_t i = begin; i < width; i += kWarp * kStep) {
    load(row + i, x);
    if (bias != nullptr) {
      load(bias + i, y);
#pragma unroll
      for (int j = 0; j < kStep; ++j) x[j] += y[j];
      store(x, row + i);
    }
#pragma unroll
    for (int j = 0; j < kStep; ++j) sum += x[j] * x[j];
  }
  sum = warp_sum(sum);
  if (begin == 0) r[n] = sqrtf(sum);
}

// One thread per column of a class: consecutive threads read consecutive values.
template <bool kHalves>
__global__ void __launch_bounds__(kColumns)
    class_sums_kernel(const int64_t* __restrict__ offsets, int64_t row_begin,
                      const float* __restrict__ x, int64_t x_stride,
                      const float* __restrict__ norms, const float* __restrict__ extra,
                      const float* __restrict__ left, const float* __restrict__ bound,
                      float* __restrict__ out, int64_t cols) {
  const int64_t c = blockIdx.x, i = static_cast<int64_t>(blockIdx.y) * kColumns + threadIdx.x;
  if (i >= cols) return;
  const int64_t begin = offsets[c] - row_begin, end = offsets[c + 1] - row_begin;
  const float share = norms == nullptr ? 1.0f : 1.0f / static_cast<float>(end - begin);
  float sum = 0;
#pragma unroll 4
  for (int64_t n = begin; n < end; ++n) {
    if constexpr (kHalves) {
      float pair[2];
      load(reinterpret_cast<const __half*>(x + n * x_stride + i), pair);
      sum += (pair[1] + pair[0]) / left[n];
    } else {
      const float factor = norms == nullptr ? 1.0f : reciprocal(norms[n]) * share;
      sum += x[n * x_stride + i] * factor;
    }
  }
  if constexpr (kHalves) sum /= half_scale(*bound);
  out[c * cols + i] = sum + (extra == nullptr ? 0.0f : extra[c * cols + i]);
}

template <int kStep>
__global__ void __launch_bounds__(kWarp* kWarpsPerBlock)
    row_dots_kernel(const float* a, const float* b, float* __restrict__ q,
                    float* __restrict__ inverse, int64_t rows, int64_t width) {
  const int64_t n = own_row();
  if (n >= rows) return;
  const float length = root(dot_rows<kStep>(a + n * width, b + n * width, width));
  if (threadIdx.x % kWarp != 0) return;
  q[n] = length;
  if (inverse != nullptr) inverse[n] = reciprocal(length);
}

template <int kStep>
__global__ void __launch_bounds__(kWarp* kWarpsPerBlock)
    shot_grads_kernel(const int64_t* __restrict__ labels, const int64_t* __restrict__ offsets,
                      const float* __restrict__ e, float* h, const float* __restrict__ r,
                      const float* __restrict__ inverse_q, const float* __restrict__ dot,
                      const float* __restrict__ grad_mean, int64_t rows, int64_t width) {
  const int64_t n = own_row();
  if (n >= rows) return;
  const int64_t y = labels[n];
  const float* row = e + n * width;
  const float* m = grad_mean + y * width;
  const float inverse = reciprocal(r[n]);
  const float direct = inverse / static_cast<float>(offsets[y + 1] - offsets[y]);
  const float along = direct * inverse * inverse * dot_rows<kStep>(row, m, width);
  const float length = dot == nullptr ? 0.0f : dot[n] * inverse_q[n] * inverse_q[n];
  float x[kStep], g[kStep], old[kStep] = {};
  for (int64_t i = threadIdx.x % kWarp * kStep; i < width; i += kWarp * kStep) {
    load(row + i, x);
    load(m + i, g);
    if (dot != nullptr) load(h + n * width + i, old);
#pragma unroll
    for (int j = 0; j < kStep; ++j) g[j] = direct * g[j] - along * x[j] - length * old[j];
    store(g, h + n * width + i);
  }
}

template <int kStep>
__global__ void __launch_bounds__(kWarp* kWarpsPerBlock)
    unit_grad_kernel(const float* grad, const float* __restrict__ unit,
                     const float* __restrict__ norms, bool accumulate, float* out, int64_t rows,
                     int64_t width) {
  const int64_t n = own_row();
  if (n >= rows) return;
  const float* u = unit + n * width;
  const float inverse = reciprocal(norms[n]);
  const float along = dot_rows<kStep>(u, grad + n * width, width);
  float x[kStep], g[kStep], old[kStep] = {};
  for (int64_t i = threadIdx.x % kWarp * kStep; i < width; i += kWarp * kStep) {
    load(u + i, x);
    load(grad + n * width + i, g);
    if (accumulate) load(out + n * width + i, old);
#pragma unroll
    for (int j = 0; j < kStep; ++j) g[j] = old[j] + (g[j] - x[j] * along) * inverse;
    store(g, out + n * width + i);
  }
}

template <class... P>
bool vectors(int64_t width, const P*... data) {
  return width % 4 == 0 && (... && is_aligned(data));
}

// A warp for each of `rows` rows.
template <class... P, class... A>
void launch_rows(const char* op, void (*kernel)(P...), int64_t rows, int device, void* stream,
                 A&&... args) {
  launch(op, kernel, blocks_for(op, rows, kWarpsPerBlock), kWarp * kWarpsPerBlock, device, stream,
         args...);
}

}  // namespace

void shot_norms_cuda(const ShotNormsCudaArgs& a, int device, void* stream) {
  if (a.rows == 0) return;
  const auto kernel = vectors(a.width, a.e, a.tau) ? shot_norms_kernel<4> : shot_norms_kernel<1>;
  launch_rows("shot_norms", kernel, a.rows, device, stream, a.labels, a.e, a.tau, a.r, a.rows,
              a.width);
}

void class_sums_cuda(const ClassSumsCudaArgs& a, int device, void* stream) {
  constexpr char kOp[] = "class_sums";
  if (a.classes == 0 || a.x.cols == 0) return;
  const dim3 grid(blocks_for(kOp, a.classes, 1), blocks_for(kOp, a.x.cols, kColumns));
  launch(kOp, a.left == nullptr ? class_sums_kernel<false> : class_sums_kernel<true>, grid,
         kColumns, device, stream, a.offsets, a.row_begin, static_cast<const float*>(a.x.data),
         a.x.row_stride, a.norms, a.extra, a.left, a.bound, a.out, a.x.cols);
}

void row_dots_cuda(const RowDotsCudaArgs& a, int device, void* stream) {
  if (a.rows == 0) return;
  const auto kernel = vectors(a.width, a.a, a.b) ? row_dots_kernel<4> : row_dots_kernel<1>;
  launch_rows("row_dots", kernel, a.rows, device, stream, a.a, a.b, a.q, a.inverse, a.rows,
              a.width);
}

void shot_grads_cuda(const ShotGradsCudaArgs& a, int device, void* stream) {
  if (a.rows == 0) return;
  const auto kernel =
      vectors(a.width, a.e, a.h, a.grad_mean) ? shot_grads_kernel<4> : shot_grads_kernel<1>;
  launch_rows("shot_grads", kernel, a.rows, device, stream, a.labels, a.offsets, a.e, a.h, a.r,
              a.inverse_q, a.dot, a.grad_mean, a.rows, a.width);
}

void unit_grad_cuda(const UnitGradCudaArgs& a, int device, void* stream) {
  if (a.rows == 0) return;
  const auto kernel =
      vectors(a.width, a.grad, a.unit, a.out) ? unit_grad_kernel<4> : unit_grad_kernel<1>;
  launch_rows("unit_grad", kernel, a.rows, device, stream, a.grad, a.unit, a.norms, a.accumulate,
              a.out, a.rows, a.width);
}

}  // namespace semobridge

// A row belongs to a warp, or to a block where rows are long. Forward: every thread runs over its
// logits once with running maxima and sums (an online softmax of both sides), then the threads'
// sums are merged. Sums are those of w = (u − u_0) − (v − v_0), taken about w at u's largest logit:
// a constant between the two rows, or one odd logit of little weight, costs no digits.
#include "core/device.cuh"
#include "core/launch.cuh"
#include "symmetric_kl/symmetric_kl.h"

namespace semobridge {
namespace {

constexpr char kOp[] = "symmetric_kl";
constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kLongRow = 1024;  // classes from which a block shares a row

// Of the logits seen: the largest, Σ exp(x − largest) and Σ exp(x − largest)·(w − centre), for both
// sides.
struct Sums {
  float top_a, sum_a, moment_a;
  float top_b, sum_b, moment_b;
  float centre;
};

__device__ __forceinline__ Sums no_logits() {
  return {-INFINITY, 0.0f, 0.0f, -INFINITY, 0.0f, 0.0f, 0.0f};
}

__device__ __forceinline__ float rescale(float from, float to) {
  return from == to ? 1.0f : expf(from - to);
}

__device__ __forceinline__ Sums merge(const Sums& x, const Sums& y) {
  Sums s;
  s.top_a = x.top_a >= y.top_a ? x.top_a : y.top_a;
  s.top_b = x.top_b >= y.top_b ? x.top_b : y.top_b;
  s.centre = x.top_a >= y.top_a ? x.centre : y.centre;
  const float left = x.centre - s.centre, right = y.centre - s.centre;
  const float xa = rescale(x.top_a, s.top_a), ya = rescale(y.top_a, s.top_a);
  const float xb = rescale(x.top_b, s.top_b), yb = rescale(y.top_b, s.top_b);
  s.sum_a = xa * x.sum_a + ya * y.sum_a;
  s.sum_b = xb * x.sum_b + yb * y.sum_b;
  s.moment_a = xa * (x.moment_a + left * x.sum_a) + ya * (y.moment_a + right * y.sum_a);
  s.moment_b = xb * (x.moment_b + left * x.sum_b) + yb * (y.moment_b + right * y.sum_b);
  return s;
}

__device__ __forceinline__ Sums exchanged(const Sums& s, int offset) {
  Sums o;
  o.top_a = __shfl_xor_sync(kAllLanes, s.top_a, offset);
  o.sum_a = __shfl_xor_sync(kAllLanes, s.sum_a, offset);
  o.moment_a = __shfl_xor_sync(kAllLanes, s.moment_a, offset);
  o.top_b = __shfl_xor_sync(kAllLanes, s.top_b, offset);
  o.sum_b = __shfl_xor_sync(kAllLanes, s.sum_b, offset);
  o.moment_b = __shfl_xor_sync(kAllLanes, s.moment_b, offset);
  o.centre = __shfl_xor_sync(kAllLanes, s.centre, offset);
  return o;
}

// Takes kStep logits of either side; one rescaling for all of them.
template <int kStep>
__device__ __forceinline__ void take(Sums& s, const float (&u)[kStep], const float (&v)[kStep],
                                     float first_u, float first_v) {
  float w[kStep];
  float top_a = s.top_a, top_b = s.top_b, centre = s.centre;
#pragma unroll
  for (int j = 0; j < kStep; ++j) {
    w[j] = (u[j] - first_u) - (v[j] - first_v);
    centre = u[j] > top_a ? w[j] : centre;
    top_a = u[j] > top_a ? u[j] : top_a;
    top_b = v[j] > top_b ? v[j] : top_b;
  }
  const float shift = s.centre - centre;
  const float by_a = rescale(s.top_a, top_a), by_b = rescale(s.top_b, top_b);
  s.moment_a = by_a * (s.moment_a + shift * s.sum_a);
  s.moment_b = by_b * (s.moment_b + shift * s.sum_b);
  s.sum_a *= by_a;
  s.sum_b *= by_b;
#pragma unroll
  for (int j = 0; j < kStep; ++j) {
    const float p = expf(u[j] - top_a), q = expf(v[j] - top_b), rest = w[j] - centre;
    s.sum_a += p;
    s.sum_b += q;
    s.moment_a += p * rest;
    s.moment_b += q * rest;
  }
  s.top_a = top_a;
  s.top_b = top_b;
  s.centre = centre;
}

template <bool kBlock, int kStep, class T>
__global__ void __launch_bounds__(kThreads)
    symmetric_kl_fwd_kernel(const T* __restrict__ a, int64_t a_stride, const T* __restrict__ b,
                            int64_t b_stride, float inverse, float* __restrict__ rows,
                            float* __restrict__ stats, int64_t count, int64_t classes) {
  SB_SHARED(Sums, partial, kWarps);
  constexpr int kTeam = kBlock ? kThreads : kWarp;
  const int64_t n = static_cast<int64_t>(blockIdx.x) * (kThreads / kTeam) + threadIdx.x / kTeam;
  if (n >= count) return;  // whole warps, and never part of a block that shares its row
  const T *row_a = a + n * a_stride, *row_b = b + n * b_stride;
  const int rank = threadIdx.x % kTeam;
  const float first_u = widen(row_a[0]) * inverse, first_v = widen(row_b[0]) * inverse;
  Sums s = no_logits();
  float u[kStep], v[kStep];
  for (int64_t i = static_cast<int64_t>(rank) * kStep; i < classes; i += kTeam * kStep) {
    load(row_a + i, u);
    load(row_b + i, v);
#pragma unroll
    for (int j = 0; j < kStep; ++j) {
      u[j] *= inverse;
      v[j] *= inverse;
    }
    take(s, u, v, first_u, first_v);
  }
  for (int offset = kWarp / 2; offset > 0; offset /= 2) s = merge(s, exchanged(s, offset));
  if constexpr (kBlock) {
    if (threadIdx.x % kWarp == 0) partial[threadIdx.x / kWarp] = s;
    __syncthreads();
    if (rank != 0) return;
    for (int w = 1; w < kWarps; ++w) s = merge(s, partial[w]);
  }
  if (rank != 0) return;
  const float log_a = logf(s.sum_a), log_b = logf(s.sum_b);
  const float mean_a = s.moment_a / s.sum_a, mean_b = s.moment_b / s.sum_b;
  // d = w − centre + offset
  const float offset = (s.centre + ((first_u - s.top_a) - (first_v - s.top_b))) - (log_a - log_b);
  rows[n] = 0.5f * (mean_a - mean_b);
  float* out = stats + n * kSymmetricKlStats;
  out[0] = s.top_a;
  out[1] = log_a;
  out[2] = s.top_b;
  out[3] = log_b;
  out[4] = mean_a + offset;
  out[5] = -(mean_b + offset);
}

template <bool kBlock, int kStep, class T>
__global__ void __launch_bounds__(kThreads)
    symmetric_kl_bwd_kernel(const T* __restrict__ a, int64_t a_stride, const T* __restrict__ b,
                            int64_t b_stride, float inverse, const float* __restrict__ grad,
                            const float* __restrict__ stats, T* __restrict__ grad_a,
                            int64_t grad_a_stride, T* __restrict__ grad_b, int64_t grad_b_stride,
                            int64_t count, int64_t classes) {
  constexpr int kTeam = kBlock ? kThreads : kWarp;
  const int64_t n = static_cast<int64_t>(blockIdx.x) * (kThreads / kTeam) + threadIdx.x / kTeam;
  if (n >= count) return;
  const T *row_a = a + n * a_stride, *row_b = b + n * b_stride;
  const float* s = stats + n * kSymmetricKlStats;
  const float top_a = s[0], log_a = s[1], top_b = s[2], log_b = s[3], forward = s[4],
              backward = s[5];
  const float factor = 0.5f * inverse * grad[n];
  float u[kStep], v[kStep];
  for (int64_t i = static_cast<int64_t>(threadIdx.x % kTeam) * kStep; i < classes;
       i += kTeam * kStep) {
    load(row_a + i, u);
    load(row_b + i, v);
#pragma unroll
    for (int j = 0; j < kStep; ++j) {
      const float x = (u[j] * inverse - top_a) - log_a, y = (v[j] * inverse - top_b) - log_b;
      const float p = expf(x), q = expf(y), d = x - y;
      u[j] = factor * (p * (d - forward) + (p - q));
      v[j] = factor * (q * (-d - backward) + (q - p));
    }
    if (grad_a != nullptr) store(u, grad_a + n * grad_a_stride + i);
    if (grad_b != nullptr) store(v, grad_b + n * grad_b_stride + i);
  }
}

bool in_vectors(const ConstMatrix& m) {
  return rows_aligned(m.data, m.dtype, m.cols, m.row_stride);
}

bool in_vectors(const Matrix& m) {
  return m.data == nullptr || rows_aligned(m.data, m.dtype, m.cols, m.row_stride);
}

template <bool kBlock, int kStep, class T>
void launch_fwd(const SymmetricKlArgs& x, int device, void* stream) {
  launch(kOp, symmetric_kl_fwd_kernel<kBlock, kStep, T>,
         blocks_for(kOp, x.a.rows, kBlock ? 1 : kWarps), kThreads, device, stream,
         static_cast<const T*>(x.a.data), x.a.row_stride, static_cast<const T*>(x.b.data),
         x.b.row_stride, static_cast<float>(1 / x.temperature), static_cast<float*>(x.rows),
         static_cast<float*>(x.stats), x.a.rows, x.a.cols);
}

template <bool kBlock, int kStep, class T>
void launch_bwd(const SymmetricKlBwdArgs& x, int device, void* stream) {
  launch(kOp, symmetric_kl_bwd_kernel<kBlock, kStep, T>,
         blocks_for(kOp, x.a.rows, kBlock ? 1 : kWarps), kThreads, device, stream,
         static_cast<const T*>(x.a.data), x.a.row_stride, static_cast<const T*>(x.b.data),
         x.b.row_stride, static_cast<float>(1 / x.temperature), static_cast<const float*>(x.grad),
         static_cast<const float*>(x.stats), static_cast<T*>(x.grad_a.data), x.grad_a.row_stride,
         static_cast<T*>(x.grad_b.data), x.grad_b.row_stride, x.a.rows, x.a.cols);
}

}  // namespace

void symmetric_kl_cuda(const SymmetricKlArgs& x, int device, void* stream) {
  if (x.a.rows == 0) return;
  const bool vectors = in_vectors(x.a) && in_vectors(x.b);
  with_storage(kOp, x.a.dtype, [&](auto storage) {
    using T = typename decltype(storage)::type;
    constexpr int kStep = kVector<T>;
    const auto run = x.a.cols >= kLongRow
                         ? (vectors ? launch_fwd<true, kStep, T> : launch_fwd<true, 1, T>)
                         : (vectors ? launch_fwd<false, kStep, T> : launch_fwd<false, 1, T>);
    run(x, device, stream);
  });
}

void symmetric_kl_bwd_cuda(const SymmetricKlBwdArgs& x, int device, void* stream) {
  if (x.a.rows == 0) return;
  const bool vectors =
      in_vectors(x.a) && in_vectors(x.b) && in_vectors(x.grad_a) && in_vectors(x.grad_b);
  with_storage(kOp, x.a.dtype, [&](auto storage) {
    using T = typename decltype(storage)::type;
    constexpr int kStep = kVector<T>;
    const auto run = x.a.cols >= kLongRow
                         ? (vectors ? launch_bwd<true, kStep, T> : launch_bwd<true, 1, T>)
                         : (vectors ? launch_bwd<false, kStep, T> : launch_bwd<false, 1, T>);
    run(x, device, stream);
  });
}

}  // namespace semobridge

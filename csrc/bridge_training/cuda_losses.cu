// Losses and their gradients, and the optimiser's step.
//
// row_loss reads a row three times (maximum, sum, gradient), once from memory and twice from cache.
// A row belongs to a warp where there are many rows, to a block where rows are few or long.
#include "bridge_training/cuda.h"
#include "bridge_training/cuda_halves.cuh"
#include "core/adamw.h"
#include "core/device.cuh"
#include "core/launch.cuh"

namespace semobridge {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kTotalThreads = 1024;
constexpr int kLongRow = 2048;   // classes from which a block shares a row
constexpr int kShortRow = 256;   // ... up to which it would have nothing to share
constexpr int kManyRows = 8192;  // rows that fill a device, a warp each

// The threads that share a row: a warp, or the block.
template <bool kBlock>
struct RowTeam {
  float* partial;
  static constexpr int kSize = kBlock ? kThreads : kWarp;
  __device__ __forceinline__ int rank() const { return threadIdx.x % kSize; }
  __device__ __forceinline__ float sum(float value) const {
    if constexpr (kBlock) return block_sum<kWarps>(value, partial);
    return warp_sum(value);
  }
  __device__ __forceinline__ float max(float value) const {
    value = warp_max(value);
    if constexpr (kBlock) {  // the first use of `partial`
      if (threadIdx.x % kWarp == 0) partial[threadIdx.x / kWarp] = value;
      __syncthreads();
      for (int w = 0; w < kWarps; ++w) value = partial[w] > value ? partial[w] : value;
    }
    return value;
  }
};

template <bool kBlock, int kStep, bool kHalves>
__global__ void __launch_bounds__(kThreads)
    row_loss_kernel(float* x, int64_t x_stride, const int64_t* __restrict__ labels,
                    float coefficient, const float* __restrict__ scale,
                    const float* __restrict__ add, float* __restrict__ loss,
                    float* __restrict__ dot, const float* __restrict__ left,
                    const float* __restrict__ right, const float* __restrict__ bound, int64_t rows,
                    int64_t classes) {
  SB_SHARED(float, partial, kWarps);
  const RowTeam<kBlock> team{partial};
  constexpr int kTeam = RowTeam<kBlock>::kSize;
  const int64_t n = static_cast<int64_t>(blockIdx.x) * (kThreads / kTeam) + threadIdx.x / kTeam;
  if (n >= rows) return;  // whole warps, and never part of a block that shares its row
  const int64_t y = labels[n], begin = team.rank() * kStep, stride = kTeam * kStep;
  const float factor = scale == nullptr ? 1.0f : scale[n];
  float* row = x + n * x_stride;
  const float* bias = add == nullptr ? nullptr : add + y * classes;
  float value[kStep], more[kStep];
  const float left_scale = kHalves ? left[n] : 1.0f;
  const auto logits = [&](int64_t i) {
    load(row + i, value);
    if constexpr (kHalves) {  // powers of two: nothing is rounded
      load(right + i, more);
#pragma unroll
      for (int j = 0; j < kStep; ++j) value[j] *= more[j] * left_scale;
    }
    if (bias != nullptr) load(bias + i, more);
#pragma unroll
    for (int j = 0; j < kStep; ++j) {
      value[j] = (bias == nullptr ? value[j] : value[j] + more[j]) * factor;
    }
  };
  // Only the thread that will overwrite the own class's logit reads it for the others.
  float most = -INFINITY, own = 0;
  for (int64_t i = begin; i < classes; i += stride) {
    logits(i);
#pragma unroll
    for (int j = 0; j < kStep; ++j) {
      most = value[j] > most ? value[j] : most;
      own = i + j == y ? value[j] : own;
    }
  }
  most = team.max(most);
  own = team.sum(own) - most;
  // Without the own class: p − 1 of a nearly certain row would keep no digit.
  float others = 0, weighted = 0;
  for (int64_t i = begin; i < classes; i += stride) {
    logits(i);
#pragma unroll
    for (int j = 0; j < kStep; ++j) {
      const float e = i + j == y ? 0.0f : expf(value[j] - most);
      others += e;
      weighted += e * (value[j] - most);
    }
  }
  others = team.sum(others);
  const float mine = expf(own), total = others + mine, share = coefficient * factor / total;
  weighted = team.sum(weighted) + mine * own;
  const float out_scale = kHalves ? half_scale(*bound) : 1.0f;
  for (int64_t i = begin; i < classes; i += stride) {
    logits(i);
#pragma unroll
    for (int j = 0; j < kStep; ++j) {
      value[j] = (i + j == y ? -others : expf(value[j] - most)) * share;
      if constexpr (kHalves) value[j] *= left_scale * out_scale;
    }
    if constexpr (kHalves) {
      store_halves(value, row + i);
    } else {
      store(value, row + i);
    }
  }
  if (begin != 0) return;
  loss[n] = coefficient * (logf(total) - own);
  if (dot != nullptr) dot[n] = coefficient * (weighted / total - own);
}

// Every block takes the mean of all norms itself: C values from L2 are cheaper than a launch.
__global__ void __launch_bounds__(kThreads)
    bias_loss_kernel(const float* __restrict__ tau, const float* __restrict__ norms,
                     const float* __restrict__ inverse, float weight, float* __restrict__ grad_tau,
                     float* __restrict__ loss, int64_t classes, int64_t width) {
  SB_SHARED(float, partial, kWarps);
  float sum = 0;
  for (int64_t c = threadIdx.x; c < classes; c += kThreads) sum += norms[c];
  const float mean = block_sum<kWarps>(sum, partial) / static_cast<float>(classes);
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (c >= classes) return;
  const int lane = threadIdx.x % kWarp;
  const float deviation = norms[c] - mean, share = weight / static_cast<float>(classes);
  const float factor = 2 * share * deviation * inverse[c];
  for (int64_t i = lane; i < width; i += kWarp)
    grad_tau[c * width + i] += factor * tau[c * width + i];
  if (lane == 0) loss[c] = share * deviation * deviation;
}

__global__ void __launch_bounds__(kTotalThreads)
    total_loss_kernel(const float* __restrict__ parts, int64_t size,
                      const int64_t* __restrict__ step, int64_t* __restrict__ step_now,
                      float* __restrict__ loss, float* __restrict__ losses) {
  SB_SHARED(double, partial, kTotalThreads / kWarp);
  double sum = 0;
  for (int64_t i = threadIdx.x; i < size; i += kTotalThreads) sum += parts[i];
  sum = block_sum<kTotalThreads / kWarp>(sum, partial);
  if (threadIdx.x != 0) return;
  *loss = static_cast<float>(sum);
  losses[*step] = static_cast<float>(sum);
  *step_now = *step;
}

__global__ void __launch_bounds__(kThreads)
    adamw_flat_kernel(float* __restrict__ parameter, const float* __restrict__ gradient,
                      float* __restrict__ first, float* __restrict__ second,
                      const float* __restrict__ table, const int64_t* __restrict__ step_now,
                      int64_t* __restrict__ step, AdamwFactors<float> f, int64_t size) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= size) return;
  const int64_t now = *step_now;
  const float* factors = table + 3 * now;
  f.keep = factors[0];
  f.rate = factors[1];
  f.correction = factors[2];
  parameter[i] = adamw_value(f, gradient[i], parameter[i], first[i], second[i]);
  if (i == 0) *step = now + 1;
}

template <bool kBlock, int kStep, bool kHalves>
void launch_row_loss(const RowLossCudaArgs& a, int device, void* stream) {
  constexpr char kOp[] = "row_loss";
  constexpr int kRows = kBlock ? 1 : kWarps;
  launch(kOp, row_loss_kernel<kBlock, kStep, kHalves>, blocks_for(kOp, a.x.rows, kRows), kThreads,
         device, stream, static_cast<float*>(a.x.data), a.x.row_stride, a.labels,
         static_cast<float>(a.coefficient), a.scale, a.add, a.loss, a.dot, a.left, a.right, a.bound,
         a.x.rows, a.x.cols);
}

template <bool kHalves>
void row_loss_of(const RowLossCudaArgs& a, int device, void* stream) {
  const int64_t classes = a.x.cols;
  const bool block = classes >= kLongRow || (classes > kShortRow && a.x.rows < kManyRows);
  const bool vectors = rows_aligned(a.x.data, DType::kFloat32, classes, a.x.row_stride) &&
                       (a.add == nullptr || is_aligned(a.add)) &&
                       (a.right == nullptr || is_aligned(a.right));
  const auto run =
      block ? (vectors ? launch_row_loss<true, 4, kHalves> : launch_row_loss<true, 1, kHalves>)
            : (vectors ? launch_row_loss<false, 4, kHalves> : launch_row_loss<false, 1, kHalves>);
  run(a, device, stream);
}

}  // namespace

void row_loss_cuda(const RowLossCudaArgs& a, int device, void* stream) {
  if (a.x.rows == 0) return;
  (a.left == nullptr ? row_loss_of<false> : row_loss_of<true>)(a, device, stream);
}

void bias_loss_cuda(const BiasLossCudaArgs& a, int device, void* stream) {
  constexpr char kOp[] = "bias_loss";
  if (a.classes == 0) return;
  launch(kOp, bias_loss_kernel, blocks_for(kOp, a.classes, kWarps), kThreads, device, stream, a.tau,
         a.norms, a.inverse, static_cast<float>(a.weight), a.grad_tau, a.loss, a.classes, a.width);
}

void total_loss_cuda(const TotalLossCudaArgs& a, int device, void* stream) {
  launch("total_loss", total_loss_kernel, 1, kTotalThreads, device, stream, a.parts, a.size, a.step,
         a.step_now, a.loss, a.losses);
}

void adamw_flat_cuda(const AdamwFlatCudaArgs& a, int device, void* stream) {
  constexpr char kOp[] = "adamw_flat";
  if (a.size == 0) return;
  const AdamwFactors<float> f =
      adamw_factors<float>(1, a.beta1, a.beta2, a.eps);  // keep: the table's
  launch(kOp, adamw_flat_kernel, blocks_for(kOp, a.size, kThreads), kThreads, device, stream,
         a.parameter, a.gradient, a.first, a.second, a.table, a.step_now, a.step, f, a.size);
}

}  // namespace semobridge

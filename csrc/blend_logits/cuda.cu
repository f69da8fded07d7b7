// One block per row: two norms, then classes strided over the threads; the best of each thread goes
// through shuffles, then through shared memory.
#include "blend_logits/cuda.h"
#include "core/device.cuh"
#include "core/launch.cuh"

namespace semobridge {
namespace {

constexpr char kOp[] = "blend_logits";
constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;

struct BlendParams {
  float alpha, beta, gamma, lambda1, lambda2, lambda3;
};

// 1/‖row‖ of the block's row, 0 for a zero row. Scaled by the largest entry, as everywhere.
template <class T>
__device__ __forceinline__ float inverse_norm(const T* row, int64_t n, float* partial) {
  float largest = 0;
  for (int64_t i = threadIdx.x; i < n; i += kThreads) {
    const float magnitude = fabsf(widen(row[i]));
    largest = magnitude > largest ? magnitude : largest;
  }
  largest = warp_max(largest);
  __syncthreads();
  if (threadIdx.x % kWarp == 0) partial[threadIdx.x / kWarp] = largest;
  __syncthreads();
  for (int w = 0; w < kWarps; ++w) largest = partial[w] > largest ? partial[w] : largest;
  const float divisor = largest > 0 ? largest : 1.0f;
  float squares = 0;
  for (int64_t i = threadIdx.x; i < n; i += kThreads) {
    const float value = widen(row[i]) / divisor;
    squares += value * value;
  }
  squares = block_sum<kWarps>(squares, partial);
  return squares == 0 ? 0.0f : 1.0f / (sqrtf(squares) * divisor);
}

__device__ __forceinline__ bool wins(float a, int64_t at, float b, int64_t other) {
  return a > b || (a == b && at < other);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    blend_logits_fwd_kernel(const T* __restrict__ x, int64_t x_stride, int64_t width,
                            const float* __restrict__ z, int64_t z_stride, int64_t classes,
                            int64_t rank, const float* __restrict__ weights, const BlendParams b,
                            int64_t* __restrict__ labels, float* __restrict__ logits) {
  SB_SHARED(float, partial, kWarps);
  SB_SHARED(int64_t, partial_at, kWarps);
  const int64_t row = blockIdx.x;
  const float* line = z + row * z_stride;
  const float inverse = inverse_norm(x + row * x_stride, width, partial);
  const float inverse_bridged =
      rank > 0 ? inverse_norm(line + 3 * classes, rank, partial) : inverse;
  float best = -INFINITY;
  int64_t best_at = 0;
  for (int64_t c = threadIdx.x; c < classes; c += kThreads) {
    const float z1 = line[c] * inverse, z2 = line[classes + c] * inverse;
    const float z3 = line[2 * classes + c] * inverse_bridged;
    float shots = b.lambda2 * expf(b.beta * z2 - b.beta) + b.lambda3 * expf(b.gamma * z3 - b.gamma);
    if (weights != nullptr) shots *= weights[c];
    const float logit = b.lambda1 * expf(b.alpha * z1 - b.alpha) + shots;
    if (logits != nullptr) logits[row * classes + c] = logit;
    if (logit > best) {
      best = logit;
      best_at = c;
    }
  }
  if (labels == nullptr) return;
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    const float other = __shfl_xor_sync(kAllLanes, best, offset);
    const int64_t other_at = __shfl_xor_sync(kAllLanes, best_at, offset);
    if (wins(other, other_at, best, best_at)) {
      best = other;
      best_at = other_at;
    }
  }
  __syncthreads();
  if (threadIdx.x % kWarp == 0) {
    partial[threadIdx.x / kWarp] = best;
    partial_at[threadIdx.x / kWarp] = best_at;
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int w = 1; w < kWarps; ++w) {
    if (wins(partial[w], partial_at[w], best, best_at)) {
      best = partial[w];
      best_at = partial_at[w];
    }
  }
  labels[row] = best_at;
}

}  // namespace

void blend_logits_cuda(const BlendLogitsCudaArgs& a, int device, void* stream) {
  if (a.x.rows == 0) return;
  if (a.z.dtype != DType::kFloat32) throw std::invalid_argument("blend_logits: z must be float32");
  const auto f = [](double v) { return static_cast<float>(v); };
  const BlendParams b{f(a.alpha),     f(a.beta),      f(a.gamma),
                      f(a.lambda[0]), f(a.lambda[1]), f(a.lambda[2])};
  with_storage(kOp, a.x.dtype, [&](auto storage) {
    using T = typename decltype(storage)::type;
    launch(kOp, blend_logits_fwd_kernel<T>, blocks_for(kOp, a.x.rows, 1), kThreads, device, stream,
           static_cast<const T*>(a.x.data), a.x.row_stride, a.x.cols,
           static_cast<const float*>(a.z.data), a.z.row_stride, a.classes, a.rank, a.weights, b,
           a.labels, a.logits);
  });
}

}  // namespace semobridge

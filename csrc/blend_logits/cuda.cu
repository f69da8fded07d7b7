// A row belongs to a warp, or to a block where rows are long: two norms, then classes strided over
// the threads; the best of each thread goes through shuffles, and a block's through shared memory.
#include "blend_logits/cuda.h"
#include "core/device.cuh"
#include "core/launch.cuh"

namespace semobridge {
namespace {

constexpr char kOp[] = "blend_logits";
constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kBlocks = 5;      // resident ones: 48 registers a thread, of which none is spilled
constexpr int kLongRow = 4096;  // columns of a row from which a block shares it
// Values of a row that a thread keeps between a norm's two passes: a warp's rows to 512 columns.
template <bool kBlock>
constexpr int kHeld = kBlock ? 8 : 16;

struct BlendParams {
  float alpha, beta, gamma, lambda1, lambda2, lambda3;
};

template <bool kBlock>
__device__ __forceinline__ float team_max(float value, float* partial) {
  value = warp_max(value);
  if constexpr (kBlock) {
    __syncthreads();  // the last use of `partial` is over
    if (threadIdx.x % kWarp == 0) partial[threadIdx.x / kWarp] = value;
    __syncthreads();
    for (int w = 0; w < kWarps; ++w) value = partial[w] > value ? partial[w] : value;
  }
  return value;
}

template <bool kBlock>
__device__ __forceinline__ float team_sum(float value, float* partial) {
  if constexpr (kBlock) {
    return block_sum<kWarps>(value, partial);
  } else {
    return warp_sum(value);
  }
}

template <int kStep>
__device__ __forceinline__ float largest_of(const float (&value)[kStep], float largest) {
#pragma unroll
  for (int j = 0; j < kStep; ++j) {
    const float magnitude = fabsf(value[j]);
    largest = magnitude > largest ? magnitude : largest;
  }
  return largest;
}

template <int kStep>
__device__ __forceinline__ float add_squares(const float (&value)[kStep], float divisor,
                                             float squares) {
#pragma unroll
  for (int j = 0; j < kStep; ++j) {
    const float scaled = value[j] / divisor;
    squares += scaled * scaled;
  }
  return squares;
}

// 1/‖row‖ of the team's row, 0 for a zero row. Scaled by the largest entry, as everywhere. The
// first values stay in registers, so that their loads are all on their way at once.
template <bool kBlock, int kStep, class T>
__device__ __forceinline__ float inverse_norm(const T* row, int64_t n, float* partial) {
  constexpr int kTeam = kBlock ? kThreads : kWarp, kAll = kHeld<kBlock>, kPacks = kAll / kStep;
  const int64_t first = static_cast<int64_t>(threadIdx.x % kTeam) * kStep;
  // One pointer and 32 bits: addresses and conditions of all loads differ by constants.
  const T* from = row + first;
  const int left = static_cast<int>(n - first < kAll * kTeam ? n - first : kAll * kTeam);
  float held[kPacks][kStep], value[kStep];
#pragma unroll
  for (int k = 0; k < kPacks; ++k) {
#pragma unroll
    for (int j = 0; j < kStep; ++j) held[k][j] = 0;
    if (k * kTeam * kStep < left) load(from + k * kTeam * kStep, held[k]);
  }
  float largest = 0;
#pragma unroll
  for (int k = 0; k < kPacks; ++k) largest = largest_of(held[k], largest);
#pragma unroll 1  // unrolled, its registers would spill
  for (int64_t i = first + kPacks * kTeam * kStep; i < n; i += kTeam * kStep) {
    load(row + i, value);
    largest = largest_of(value, largest);
  }
  largest = team_max<kBlock>(largest, partial);
  const float divisor = largest > 0 ? largest : 1.0f;
  float squares = 0;
#pragma unroll
  for (int k = 0; k < kPacks; ++k) squares = add_squares(held[k], divisor, squares);
#pragma unroll 1  // unrolled, its registers would spill
  for (int64_t i = first + kPacks * kTeam * kStep; i < n; i += kTeam * kStep) {
    load(row + i, value);
    squares = add_squares(value, divisor, squares);
  }
  squares = team_sum<kBlock>(squares, partial);
  return squares == 0 ? 0.0f : 1.0f / (sqrtf(squares) * divisor);
}

__device__ __forceinline__ bool wins(float a, int64_t at, float b, int64_t other) {
  return a > b || (a == b && at < other);
}

template <bool kBlock, bool kAligned, class T>
__global__ void __launch_bounds__(kThreads, kBlocks)
    blend_logits_fwd_kernel(const T* __restrict__ x, int64_t x_stride, int64_t width,
                            const float* __restrict__ z, int64_t z_stride, int64_t rows,
                            int64_t classes, int64_t rank, const float* __restrict__ weights,
                            const BlendParams b, int64_t* __restrict__ labels,
                            float* __restrict__ logits) {
  SB_SHARED(float, partial, kWarps);
  SB_SHARED(int64_t, partial_at, kWarps);
  constexpr int kTeam = kBlock ? kThreads : kWarp;
  constexpr int kStep = kAligned ? kVector<float> : 1;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (kThreads / kTeam) + threadIdx.x / kTeam;
  if (row >= rows) return;  // whole warps, and never part of a block that shares its row
  const float* line = z + row * z_stride;
  const float inverse =
      inverse_norm<kBlock, kAligned ? kVector<T> : 1>(x + row * x_stride, width, partial);
  const float inverse_bridged =
      rank > 0 ? inverse_norm<kBlock, kStep>(line + 3 * classes, rank, partial) : inverse;
  float best = -INFINITY;
  int64_t best_at = 0;
  for (int64_t c = static_cast<int64_t>(threadIdx.x % kTeam) * kStep; c < classes;
       c += kTeam * kStep) {
    float z1[kStep], z2[kStep], z3[kStep], factor[kStep], logit[kStep];
    load(line + c, z1);
    load(line + classes + c, z2);
    load(line + 2 * classes + c, z3);
    if (weights != nullptr) load(weights + c, factor);
#pragma unroll
    for (int j = 0; j < kStep; ++j) {
      float shots = b.lambda2 * expf(b.beta * (z2[j] * inverse) - b.beta) +
                    b.lambda3 * expf(b.gamma * (z3[j] * inverse_bridged) - b.gamma);
      if (weights != nullptr) shots *= factor[j];
      logit[j] = b.lambda1 * expf(b.alpha * (z1[j] * inverse) - b.alpha) + shots;
      if (logit[j] > best) {
        best = logit[j];
        best_at = c + j;
      }
    }
    if (logits != nullptr) store(logit, logits + row * classes + c);
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
  if constexpr (kBlock) {
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
  }
  if (threadIdx.x % kTeam == 0) labels[row] = best_at;
}

template <bool kBlock, bool kAligned, class T>
void launch_fwd(const BlendLogitsCudaArgs& a, const BlendParams& b, int device, void* stream) {
  launch(kOp, blend_logits_fwd_kernel<kBlock, kAligned, T>,
         blocks_for(kOp, a.x.rows, kBlock ? 1 : kWarps), kThreads, device, stream,
         static_cast<const T*>(a.x.data), a.x.row_stride, a.x.cols,
         static_cast<const float*>(a.z.data), a.z.row_stride, a.x.rows, a.classes, a.rank,
         a.weights, b, a.labels, a.logits);
}

// The blocks of a line lie side by side: each begins aligned where all are of whole vectors.
bool in_vectors(const BlendLogitsCudaArgs& a) {
  return rows_aligned(a.x.data, a.x.dtype, a.x.cols, a.x.row_stride) &&
         rows_aligned(a.z.data, a.z.dtype, a.classes, a.z.row_stride) &&
         a.rank % kVector<float> == 0 && is_aligned(a.weights) && is_aligned(a.logits);
}

}  // namespace

void blend_logits_cuda(const BlendLogitsCudaArgs& a, int device, void* stream) {
  if (a.x.rows == 0) return;
  if (a.z.dtype != DType::kFloat32) throw std::invalid_argument("blend_logits: z must be float32");
  const auto f = [](double v) { return static_cast<float>(v); };
  const BlendParams b{f(a.alpha),     f(a.beta),      f(a.gamma),
                      f(a.lambda[0]), f(a.lambda[1]), f(a.lambda[2])};
  // By the row's own size: a result does not depend on the number of rows.
  const bool block = a.z.cols >= kLongRow || a.x.cols >= kLongRow, vectors = in_vectors(a);
  with_storage(kOp, a.x.dtype, [&](auto storage) {
    using T = typename decltype(storage)::type;
    const auto run = block ? (vectors ? launch_fwd<true, true, T> : launch_fwd<true, false, T>)
                           : (vectors ? launch_fwd<false, true, T> : launch_fwd<false, false, T>);
    run(a, b, device, stream);
  });
}

}  // namespace semobridge

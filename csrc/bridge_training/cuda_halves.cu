// Operands of products by halves, and what comes out of them (cuda_halves.cuh).
#include "bridge_training/cuda.h"
#include "bridge_training/cuda_halves.cuh"
#include "core/launch.cuh"

namespace semobridge {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;

// A warp a row: its largest entry, then, from cache, its halves.
template <bool kPacks>
__global__ void __launch_bounds__(kThreads)
    cut_rows_kernel(const float* __restrict__ x, int64_t x_stride, int copies,
                    __half* __restrict__ out, float* __restrict__ scale, int64_t rows,
                    int64_t width) {
  constexpr int kMoved = kPacks ? 4 : 1;
  const int64_t n = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (n >= rows) return;
  const int64_t begin = threadIdx.x % kWarp * kMoved;
  const float* row = x + n * x_stride;
  float value[kMoved], most = 0;
  for (int64_t i = begin; i < width; i += kWarp * kMoved) {
    load(row + i, value);
#pragma unroll
    for (int j = 0; j < kMoved; ++j) most = fabsf(value[j]) > most ? fabsf(value[j]) : most;
  }
  const float factor = half_scale(warp_max(most));
  __half* target = out + n * (copies + 1) * width;
  for (int64_t i = begin; i < width; i += kWarp * kMoved) {
    load(row + i, value);
    Pack<__half, kMoved> high, low;
#pragma unroll
    for (int j = 0; j < kMoved; ++j) cut(value[j] * factor, &high.at[j], &low.at[j]);
    for (int copy = 0; copy < copies; ++copy) {
      *reinterpret_cast<Pack<__half, kMoved>*>(target + copy * width + i) = high;
    }
    *reinterpret_cast<Pack<__half, kMoved>*>(target + copies * width + i) = low;
  }
  if (begin == 0) scale[n] = 1.0f / factor;
}

// Two columns a thread: a load of each part, its highs and lows, is four neighbouring sums.
template <bool kPacks>
__global__ void __launch_bounds__(kThreads)
    add_halves_kernel(const float* __restrict__ raw, int64_t raw_stride, int parts,
                      const float* __restrict__ bounds, int64_t split, float* __restrict__ out,
                      int64_t out_stride, bool accumulate, int64_t rows, int64_t cols) {
  constexpr int kMoved = kPacks ? 2 : 1;
  const int64_t packs = cols / kMoved;
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (at >= rows * packs) return;
  const int64_t row = at / packs, col = at % packs * kMoved;
  float sum[kMoved] = {}, pair[2 * kMoved], old[kMoved] = {};
  for (int part = parts - 1; part >= 0; --part) {  // the small ones first
    load(raw + (part * rows + row) * raw_stride + 2 * col, pair);
#pragma unroll
    for (int j = 0; j < kMoved; ++j) sum[j] += pair[2 * j + 1] + pair[2 * j];
  }
  float* target = out + row * out_stride + col;
  if (accumulate) load(target, old);
#pragma unroll
  for (int j = 0; j < kMoved; ++j) {
    const float factor = half_scale(bounds[col + j < split ? 0 : 1]);
    sum[j] = old[j] + sum[j] / factor;
  }
  store(sum, target);
}

}  // namespace

void cut_rows_cuda(const CutRowsCudaArgs& a, int device, void* stream) {
  constexpr char kOp[] = "cut_rows";
  if (a.x.rows == 0) return;
  const bool packs =
      rows_aligned(a.x.data, DType::kFloat32, a.x.cols, a.x.row_stride) && is_aligned(a.out);
  launch(kOp, packs ? cut_rows_kernel<true> : cut_rows_kernel<false>,
         blocks_for(kOp, a.x.rows, kWarps), kThreads, device, stream,
         static_cast<const float*>(a.x.data), a.x.row_stride, a.copies, static_cast<__half*>(a.out),
         a.scale, a.x.rows, a.x.cols);
}

void add_halves_cuda(const AddHalvesCudaArgs& a, int device, void* stream) {
  constexpr char kOp[] = "add_halves";
  const int64_t rows = a.out.rows, cols = a.out.cols;
  if (rows == 0 || cols == 0) return;
  if (a.raw.rows != a.parts * rows || a.raw.cols != 2 * cols) {
    throw std::invalid_argument("add_halves: raw must hold two columns for each of out");
  }
  const bool packs = cols % 2 == 0 && a.out.row_stride % 2 == 0 && is_aligned(a.out.data) &&
                     rows_aligned(a.raw.data, DType::kFloat32, a.raw.cols, a.raw.row_stride);
  launch(kOp, packs ? add_halves_kernel<true> : add_halves_kernel<false>,
         blocks_for(kOp, rows * (packs ? cols / 2 : cols), kThreads), kThreads, device, stream,
         static_cast<const float*>(a.raw.data), a.raw.row_stride, static_cast<int>(a.parts),
         a.bounds, a.split, static_cast<float*>(a.out.data), a.out.row_stride, a.accumulate, rows,
         cols);
}

}  // namespace semobridge

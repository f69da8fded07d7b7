// One warp per row: 16 bytes a lane where everything is aligned, the sum of squares reduced by
// shuffles, further passes from cache. Rows are 2-8 KiB, so those passes hit L1, and nothing needs
// shared memory or a block-wide barrier.
#include "core/launch.cuh"
#include "core/row_norm.cuh"
#include "project_normalize/cuda_normalize_rows.h"

namespace semobridge {
namespace {

constexpr char kOp[] = "normalize_rows";
constexpr int kWarpsPerBlock = 8;
constexpr int kBlocks = 4;  // per multiprocessor: room for 64 registers, and loads of 32 warps

// N consecutive values of all parts of a row, and its bias.
template <int kParts, int N, class T>
__device__ __forceinline__ void read(const T* row, int64_t cols, const T* bias, int64_t i,
                                     T (&to)[N]) {
  const Pack<T, N> first = *reinterpret_cast<const Pack<T, N>*>(row + i);
#pragma unroll
  for (int j = 0; j < N; ++j) to[j] = first.at[j];
  if constexpr (kParts == 2) {
    const Pack<T, N> second = *reinterpret_cast<const Pack<T, N>*>(row + cols + i);
#pragma unroll
    for (int j = 0; j < N; ++j) to[j] += second.at[j];
  }
  if (bias == nullptr) return;
  const Pack<T, N> offset = *reinterpret_cast<const Pack<T, N>*>(bias + i);
#pragma unroll
  for (int j = 0; j < N; ++j) to[j] += offset.at[j];
}

template <class T, class Out, int kParts, int N>
__global__ void __launch_bounds__(kWarp* kWarpsPerBlock, kBlocks)
    normalize_rows_fwd_kernel(const T* __restrict__ x, int64_t x_stride, const T* __restrict__ bias,
                              int64_t bias_stride, bool normalize, T scale, Out* __restrict__ out,
                              int64_t out_stride, T* __restrict__ norms, int64_t rows,
                              int64_t cols) {
  [[maybe_unused]] constexpr int kUnroll = 4 / kParts;  // more would not fit into the registers
  const int lane = threadIdx.x % kWarp;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + threadIdx.x / kWarp;
  if (row >= rows) return;
  const T* source = x + row * x_stride;
  const T* offset = bias == nullptr ? nullptr : bias + row * bias_stride;
  T value[N], factor = scale;
  if (normalize) {
    // As row_norm.cuh has it: divided by the largest entry, whose square may overflow.
    T largest = 0, squares = 0;
#pragma unroll kUnroll
    for (int64_t i = lane * N; i < cols; i += kWarp * N) {
      read<kParts>(source, cols, offset, i, value);
#pragma unroll
      for (int j = 0; j < N; ++j) {
        const T magnitude = value[j] < 0 ? -value[j] : value[j];
        largest = magnitude > largest ? magnitude : largest;
      }
    }
    largest = warp_max(largest);
    const T divisor = largest > 0 ? largest : T(1);
#pragma unroll kUnroll
    for (int64_t i = lane * N; i < cols; i += kWarp * N) {
      read<kParts>(source, cols, offset, i, value);
#pragma unroll
      for (int j = 0; j < N; ++j) squares += value[j] / divisor * (value[j] / divisor);
    }
    const T norm = sqrt(warp_sum(squares)) * divisor;
    factor = unit_factor(norm, scale);
    if (norms != nullptr && lane == 0) norms[row] = norm;
  }
  Out* target = out + row * out_stride;
#pragma unroll kUnroll
  for (int64_t i = lane * N; i < cols; i += kWarp * N) {
    read<kParts>(source, cols, offset, i, value);
    Pack<Out, N> pack;
#pragma unroll
    for (int j = 0; j < N; ++j) narrow(value[j] * factor, &pack.at[j]);
    *reinterpret_cast<Pack<Out, N>*>(target + i) = pack;
  }
}

template <class T, class Out, int kParts, int N>
void launch_typed(const NormalizeRowsArgs& a, int device, void* stream) {
  launch(kOp, normalize_rows_fwd_kernel<T, Out, kParts, N>,
         blocks_for(kOp, a.x.rows, kWarpsPerBlock), kWarp * kWarpsPerBlock, device, stream,
         static_cast<const T*>(a.x.data), a.x.row_stride, static_cast<const T*>(a.bias.data),
         a.bias.row_stride, a.normalize, static_cast<T>(a.scale), static_cast<Out*>(a.out.data),
         a.out.row_stride, static_cast<T*>(a.norms), a.x.rows, a.out.cols);
}

template <class Out, int kParts>
void launch_aligned(const NormalizeRowsArgs& a, int device, void* stream) {
  const int64_t cols = a.out.cols;
  const bool aligned =
      rows_aligned(a.x.data, a.x.dtype, cols, a.x.row_stride) &&
      rows_aligned(a.out.data, a.out.dtype, cols, a.out.row_stride) &&
      (a.bias.data == nullptr || rows_aligned(a.bias.data, a.bias.dtype, cols, a.bias.row_stride));
  if (aligned) return launch_typed<float, Out, kParts, kVector<float>>(a, device, stream);
  launch_typed<float, Out, kParts, 1>(a, device, stream);
}

}  // namespace

void normalize_rows_cuda(const NormalizeRowsArgs& a, int device, void* stream) {
  if (a.x.rows == 0 || a.out.cols == 0) return;
  const bool whole = a.x.cols == a.out.cols;
  if (!whole && (a.x.cols != 2 * a.out.cols || a.x.dtype == DType::kFloat64)) {
    throw std::invalid_argument(
        "normalize_rows: x must have the columns of out, or of float32 twice as many");
  }
  if (a.x.dtype == DType::kFloat64) return launch_typed<double, double, 1, 1>(a, device, stream);
  if (a.x.dtype != DType::kFloat32) {
    throw std::invalid_argument("normalize_rows: x must be float32 or float64");
  }
  with_storage(kOp, a.out.dtype, [&](auto out) {
    using Out = typename decltype(out)::type;
    if (whole) return launch_aligned<Out, 1>(a, device, stream);
    launch_aligned<Out, 2>(a, device, stream);
  });
}

}  // namespace semobridge

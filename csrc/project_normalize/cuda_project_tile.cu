// A block owns 32 rows and 64 columns, a warp 16 and 32 of them. The columns of a row are shared by
// several blocks, because at a few hundred rows blocks that owned whole rows would leave most
// multiprocessors idle; the norm is left to the last of them.
//
// The next tile travels from memory to registers while the present one is multiplied out of shared
// memory. Rows there are padded by 16 bytes: the 8 rows that a fragment reads at once lie in
// different banks.
#include <mma.h>

#include "core/last_block.cuh"
#include "project_normalize/cuda_project_tile.h"

namespace semobridge {
namespace {

namespace wmma = nvcuda::wmma;

constexpr char kOp[] = "project_tile";
constexpr int kRows = static_cast<int>(kProjectTileRows);
constexpr int kCols = 64;
constexpr int kDepth = 32;
constexpr int kFragment = 16;  // rows and columns of one instruction
constexpr int kWarpsPerBlock = 4;
constexpr int kThreads = kWarp * kWarpsPerBlock;  // 4 for a row of either tile:
constexpr int kXValues = kRows * kDepth / kThreads;
constexpr int kMatrixValues = kDepth * kCols / kThreads;
constexpr int kSumStride = kCols + 4;

// What the multiplier takes: its type, the depth of one instruction, the parts of x; and how many
// blocks a multiprocessor must have room for (128 and 168 registers, so that none spill).
template <class X>
struct Multiplier {
  using Type = X;
  static constexpr int kStep = 16, kParts = 1, kBlocks = 4;
};
template <>
struct Multiplier<float> {
  using Type = wmma::precision::tf32;
  static constexpr int kStep = 8, kParts = 2, kBlocks = 3;
};

template <class X>
struct alignas(32) Stage {
  static constexpr int kPad = 16 / static_cast<int>(sizeof(X));
  X x[Multiplier<X>::kParts][kRows][kDepth + kPad];
  X matrix[2][kDepth][kCols + kPad];
};

// The part of `value` that the multiplier's type holds.
__device__ __forceinline__ void leading(float value, float* part) {
  *part = wmma::__float_to_tf32(value);
}
template <class X>
__device__ __forceinline__ void leading(float value, X* part) {
  narrow(value, part);
}

// `at(row, col)` in registers: N values of row `row` from column `col` on; zeros outside.
template <int N, bool kAligned, class T>
__device__ __forceinline__ void fetch(const T* data, int64_t stride, int64_t row, int64_t rows,
                                      int64_t col, int64_t cols, float (&to)[N]) {
  constexpr int kPack = kAligned ? kVector<T> : 1;
#pragma unroll
  for (int i = 0; i < N; i += kPack) {
    float pack[kPack] = {};
    if (row < rows && col + i < cols) load(data + row * stride + col + i, pack);
#pragma unroll
    for (int j = 0; j < kPack; ++j) to[i + j] = pack[j];
  }
}

template <class X, bool kAligned>
__global__ void __launch_bounds__(kWarp* kWarpsPerBlock, Multiplier<X>::kBlocks)
    project_tile_fwd_kernel(const X* __restrict__ x, int64_t x_stride,
                            const float* __restrict__ matrix, int64_t matrix_stride,
                            float matrix_scale, const float* __restrict__ bias, int64_t bias_stride,
                            bool normalize, float scale, X* __restrict__ out, int64_t out_stride,
                            float* __restrict__ norms, float* raw, int* tickets, int64_t n,
                            int64_t k, int64_t cols) {
  using M = Multiplier<X>;
  SB_SHARED(Stage<X>, stage, 1);
  static_assert(sizeof(Stage<X>) >= sizeof(float) * kRows * kSumStride, "sums take its place");

  const int64_t row0 = static_cast<int64_t>(blockIdx.y) * kRows;
  const int64_t col0 = static_cast<int64_t>(blockIdx.x) * kCols;
  const int line = threadIdx.x / 4, quarter = threadIdx.x % 4;
  const int x_at = quarter * kXValues, matrix_at = quarter * kMatrixValues;
  const int warp = threadIdx.x / kWarp;
  const int warp_row = warp / 2 * kFragment, warp_col = warp % 2 * 2 * kFragment;

  wmma::fragment<wmma::accumulator, kFragment, kFragment, M::kStep, float> sum[2];
  wmma::fill_fragment(sum[0], 0.0f);
  wmma::fill_fragment(sum[1], 0.0f);
  float x_next[kXValues], matrix_next[kMatrixValues];
  const auto fetch_tile = [&](int64_t depth) {
    fetch<kXValues, kAligned>(x, x_stride, row0 + line, n, depth + x_at, k, x_next);
    fetch<kMatrixValues, kAligned>(matrix, matrix_stride, depth + line, k, col0 + matrix_at, cols,
                                   matrix_next);
  };
  fetch_tile(0);
  for (int64_t depth = 0; depth < k; depth += kDepth) {
    __syncthreads();  // the last tile has been multiplied
#pragma unroll
    for (int i = 0; i < kXValues; ++i) {
      leading(x_next[i], &stage->x[0][line][x_at + i]);
      if constexpr (M::kParts == 2) {
        leading(x_next[i] - stage->x[0][line][x_at + i], &stage->x[1][line][x_at + i]);
      }
    }
#pragma unroll
    for (int i = 0; i < kMatrixValues; ++i) {
      const float value = matrix_next[i] * matrix_scale;
      X high;
      leading(value, &high);
      stage->matrix[0][line][matrix_at + i] = high;
      leading(value - widen(high), &stage->matrix[1][line][matrix_at + i]);
    }
    __syncthreads();  // the tile is complete
    if (depth + kDepth < k) fetch_tile(depth + kDepth);
#pragma unroll
    for (int step = 0; step < kDepth; step += M::kStep) {
      wmma::fragment<wmma::matrix_a, kFragment, kFragment, M::kStep, typename M::Type,
                     wmma::row_major>
          rows[M::kParts];
#pragma unroll
      for (int part = 0; part < M::kParts; ++part) {
        wmma::load_matrix_sync(rows[part], &stage->x[part][warp_row][step],
                               kDepth + Stage<X>::kPad);
      }
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        wmma::fragment<wmma::matrix_b, kFragment, kFragment, M::kStep, typename M::Type,
                       wmma::row_major>
            high, low;
        const int at = warp_col + c * kFragment;
        wmma::load_matrix_sync(high, &stage->matrix[0][step][at], kCols + Stage<X>::kPad);
        wmma::load_matrix_sync(low, &stage->matrix[1][step][at], kCols + Stage<X>::kPad);
        // The small products first: they would be lost in the sum of the large ones.
        if constexpr (M::kParts == 2) wmma::mma_sync(sum[c], rows[1], high, sum[c]);
        wmma::mma_sync(sum[c], rows[0], low, sum[c]);
        wmma::mma_sync(sum[c], rows[0], high, sum[c]);
      }
    }
  }

  __syncthreads();  // the last tile has been multiplied; the sums take its place
  float* sums = reinterpret_cast<float*>(stage);
#pragma unroll
  for (int c = 0; c < 2; ++c) {
    float* target = sums + warp_row * kSumStride + warp_col + c * kFragment;
    wmma::store_matrix_sync(target, sum[c], kSumStride, wmma::mem_row_major);
  }
  __syncthreads();  // the sums are complete
  const int rows = n - row0 < kRows ? static_cast<int>(n - row0) : kRows;
  for (int i = threadIdx.x; i < rows * kCols; i += kThreads) {
    const int64_t row = row0 + i / kCols, col = col0 + i % kCols;
    if (col >= cols) continue;
    float y = sums[i / kCols * kSumStride + i % kCols] / matrix_scale;
    if (bias != nullptr) y += bias[row * bias_stride + col];
    if (normalize) {
      raw[row * cols + col] = y;
    } else {
      narrow(y * scale, out + row * out_stride + col);
    }
  }
  if (normalize) {
    normalize_by_last_block(raw, cols, row0, rows, scale, out, out_stride, norms, tickets);
  }
}

template <class X, bool kAligned>
void launch_typed(const ProjectTileCudaArgs& a, int device, void* stream) {
  const dim3 grid(blocks_for(kOp, a.out.cols, kCols), blocks_for(kOp, a.x.rows, kRows));
  launch(kOp, project_tile_fwd_kernel<X, kAligned>, grid, kThreads, device, stream,
         static_cast<const X*>(a.x.data), a.x.row_stride, static_cast<const float*>(a.matrix.data),
         a.matrix.row_stride, static_cast<float>(a.matrix_scale),
         static_cast<const float*>(a.bias.data), a.bias.row_stride, a.normalize,
         static_cast<float>(a.scale), static_cast<X*>(a.out.data), a.out.row_stride, a.norms, a.raw,
         a.tickets, a.x.rows, a.x.cols, a.out.cols);
}

}  // namespace

void project_tile_cuda(const ProjectTileCudaArgs& a, int device, void* stream) {
  if (a.x.rows == 0 || a.out.cols == 0) return;
  if (a.matrix.dtype != DType::kFloat32) {
    throw std::invalid_argument("project_tile: the matrix must be float32");
  }
  if (project_tile_cuda_tickets(a.x.rows) > 65535) {
    throw std::invalid_argument("project_tile: too many rows for one launch");
  }
  const bool aligned =
      rows_aligned(a.x.data, a.x.dtype, a.x.cols, a.x.row_stride) &&
      rows_aligned(a.matrix.data, DType::kFloat32, a.out.cols, a.matrix.row_stride);
  with_storage(kOp, a.x.dtype, [&](auto storage) {
    using X = typename decltype(storage)::type;
    if (aligned) return launch_typed<X, true>(a, device, stream);
    launch_typed<X, false>(a, device, stream);
  });
}

}  // namespace semobridge

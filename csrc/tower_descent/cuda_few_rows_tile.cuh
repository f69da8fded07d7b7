// A tile of a product of few rows (cuda_few_rows.h), as a launch of its own or a phase of a step
// takes it.
//
// A block multiplies 64 rows by 32 columns over its part of K, on tensor cores by way of shared
// memory, where the left operand arrives as the norm before it makes it. With so few rows the time
// is that of reading the matrix: 32 columns and the split of K spread it over the whole device, and
// a step of the loop has all its loads (five to fourteen of 16 bytes a thread) on their way at
// once.
#pragma once
#include <mma.h>

#include "core/device.cuh"
#include "tower_descent/cuda_few_rows.cuh"

namespace semobridge {

namespace wmma = nvcuda::wmma;

constexpr int kFewBlocks = 128;   // tiles of columns times parts of K: one a multiprocessor
constexpr int kFewSmallest = 32;  // of K in the smallest step of the loop

// How operands lie in shared memory.
template <class T>
struct Multiply {
  static constexpr int kParts = 1, kDepth = 64, kK = 16, kPad = 8;
  using Operand = T;
  using Stored = T;
  static __device__ __forceinline__ void split(float value, T* parts) { narrow(value, parts); }
};

template <>
struct Multiply<float> {
  static constexpr int kParts = 2, kDepth = kFewSmallest, kK = 8, kPad = 4;
  using Operand = wmma::precision::tf32;
  using Stored = float;
  static __device__ __forceinline__ void split(float value, float* parts) {
    parts[0] = wmma::__float_to_tf32(value);
    parts[1] = wmma::__float_to_tf32(value - parts[0]);
  }
};

template <class T, bool kTransposed>
struct alignas(128) Stage {
  using M = Multiply<T>;
  // Rows of the right operand as they lie in memory: along K when the matrix is transposed.
  static constexpr int kRightRows = kTransposed ? kFewCols : M::kDepth;
  static constexpr int kRightCols = kTransposed ? M::kDepth : kFewCols;

  union {
    struct alignas(128) {
      typename M::Stored left[M::kParts][kFewRows][M::kDepth + M::kPad];
      typename M::Stored right[M::kParts][kRightRows][kRightCols + M::kPad];
    };
    float ends[2][kFewRows][kFewCols];  // sums, and what stands beside them
  };
  FewRowsStats stats;
  int is_last;
};

// kStep values into one row of both parts.
template <class M, int kRows, int kStride, int kStep>
__device__ __forceinline__ void put(const float (&value)[kStep],
                                    typename M::Stored (&tile)[M::kParts][kRows][kStride], int row,
                                    int col) {
  using Stored = typename M::Stored;
  Pack<Stored, kStep> pack[M::kParts];
#pragma unroll
  for (int j = 0; j < kStep; ++j) {
    Stored parts[M::kParts];
    M::split(value[j], parts);
#pragma unroll
    for (int part = 0; part < M::kParts; ++part) pack[part].at[j] = parts[part];
  }
#pragma unroll
  for (int part = 0; part < M::kParts; ++part) {
    *reinterpret_cast<Pack<Stored, kStep>*>(&tile[part][row][col]) = pack[part];
  }
}

template <class T, Before kBefore, bool kTransposed>
__device__ __forceinline__ void fill_stage(const FewRowsParams<T>& p, int tile, int row0, int rows,
                                           int depth, Stage<T, kTransposed>* stage) {
  using S = Stage<T, kTransposed>;
  using M = Multiply<T>;
  constexpr int kStep = kVector<T>;
  constexpr int kLeftPacks = M::kDepth / kStep, kRightPacks = S::kRightCols / kStep;
#pragma unroll
  for (int i = 0; i < kFewRows * kLeftPacks / kFewThreads; ++i) {
    const int at = i * kFewThreads + static_cast<int>(threadIdx.x);
    const int row = at / kLeftPacks, k = depth + at % kLeftPacks * kStep;
    float value[kStep] = {};
    if (row < rows && k < p.k) {
      left_operand<T, kBefore>(p, stage->stats, row0 + row, row, k, tile == 0, value);
    }
    put<M>(value, stage->left, row, at % kLeftPacks * kStep);
  }
#pragma unroll
  for (int i = 0; i < S::kRightRows * kRightPacks / kFewThreads; ++i) {
    const int at = i * kFewThreads + static_cast<int>(threadIdx.x);
    const int row = at / kRightPacks, col = at % kRightPacks * kStep;
    const int first = tile * kFewCols;
    const int from_row = (kTransposed ? first : depth) + row;
    const int from_col = (kTransposed ? depth : first) + col;
    float value[kStep] = {};
    if (from_row < (kTransposed ? p.cols : p.k) && from_col < (kTransposed ? p.k : p.cols)) {
      load(p.weight + from_row * p.weight_stride + from_col, value);
    }
    put<M>(value, stage->right, row, col);
  }
}

// The parts of a tile's sums, added up in their order, and the second operand, into stage->ends;
// the statistics of the norm behind. A thread's loads of a part, sixteen rows, are on their way at
// once.
template <class T, class S>
__device__ __forceinline__ void add_parts(const FewRowsParams<T>& p, const float* sums,
                                          int64_t part_stride, int splits, int row0, int rows,
                                          int tile, S* stage) {
  constexpr int kWarps = kFewThreads / kWarp, kOwn = kFewRows / kWarps;
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = threadIdx.x % kWarp;
  const int col = tile * kFewCols + lane;
  if (p.behind == Behind::kNormGradStats && static_cast<int>(threadIdx.x) < rows) {
    stage->stats.mean[threadIdx.x] = p.norm_behind.mean[row0 + threadIdx.x];
    stage->stats.rstd[threadIdx.x] = p.norm_behind.rstd[row0 + threadIdx.x];
  }
  float total[kOwn] = {}, other[kOwn] = {};
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    const int r = warp + i * kWarps;
    if (r < rows && col < p.cols && p.other != nullptr) {
      other[i] = widen(p.other[(row0 + r) * p.other_stride + col]);
    }
  }
#pragma unroll 2
  for (int part = 0; part < splits; ++part) {
    const float* from = sums + part * part_stride + lane;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int r = warp + i * kWarps;
      // Past L1: other multiprocessors have written these.
      if (r < rows) total[i] += __ldcg(from + r * kFewCols);
    }
  }
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    stage->ends[0][warp + i * kWarps][lane] = total[i];
    stage->ends[1][warp + i * kWarps][lane] = other[i];
  }
  __syncthreads();  // the norm's statistics are there
}

// Which tile of columns, tile of rows and part of K, of how many each.
struct FewRowsPlace {
  int tile, row_tile, part, tiles, row_tiles, splits;
};

// One tile's part of K; the last part of a tile to come finishes it, with what `late` returns:
// again p, which then need not stay in registers until here. Whether this block has.
template <class T, Before kBefore, bool kTransposed, class Late>
__device__ __forceinline__ bool few_rows_tile(const FewRowsParams<T>& p, Late late,
                                              const FewRowsPlace& at,
                                              Stage<T, kTransposed>* stage) {
  using S = Stage<T, kTransposed>;
  using M = Multiply<T>;
  const int row0 = at.row_tile * kFewRows;
  const int rows = p.rows - row0 < kFewRows ? p.rows - row0 : kFewRows;
  const int warp_row = static_cast<int>(threadIdx.x) / kWarp * 16;
  const int tile = at.tile, splits = at.splits;
  if (static_cast<int>(threadIdx.x) < rows) {
    merge_stats<T, kBefore>(p, row0 + threadIdx.x, threadIdx.x, tile == 0 && at.part == 0,
                            &stage->stats);
  }

  using Layout = std::conditional_t<kTransposed, wmma::col_major, wmma::row_major>;
  wmma::fragment<wmma::accumulator, 16, 16, M::kK, float> sum[2];
  for (auto& f : sum) wmma::fill_fragment(f, 0.0f);
  const int steps = (p.k + M::kDepth - 1) / M::kDepth;
  const int last = (at.part + 1) * steps / splits;
  for (int step = at.part * steps / splits; step < last; ++step) {
    __syncthreads();  // statistics are merged, the last tile has been multiplied
    fill_stage<T, kBefore>(p, tile, row0, rows, step * M::kDepth, stage);
    __syncthreads();  // the tile is complete
    if (warp_row >= rows) continue;
#pragma unroll
    for (int k = 0; k < M::kDepth; k += M::kK) {
      wmma::fragment<wmma::matrix_a, 16, 16, M::kK, typename M::Operand, wmma::row_major>
          left[M::kParts];
#pragma unroll
      for (int part = 0; part < M::kParts; ++part) {
        wmma::load_matrix_sync(left[part], &stage->left[part][warp_row][k], M::kDepth + M::kPad);
      }
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        wmma::fragment<wmma::matrix_b, 16, 16, M::kK, typename M::Operand, Layout> right;
#pragma unroll
        for (int part = M::kParts - 1; part >= 0; --part) {  // the small products first
          const auto* from =
              kTransposed ? &stage->right[part][16 * c][k] : &stage->right[part][k][16 * c];
          wmma::load_matrix_sync(right, from, S::kRightCols + M::kPad);
          if (part == 0 && M::kParts == 2)
            wmma::mma_sync(sum[c], left[M::kParts - 1], right, sum[c]);
          wmma::mma_sync(sum[c], left[0], right, sum[c]);
        }
      }
    }
  }

  // Tiles of one part of K after those of another.
  const int64_t tiles = static_cast<int64_t>(at.tiles) * at.row_tiles;
  constexpr int kTile = kFewRows * kFewCols;
  float* tile_sums = p.sums + (static_cast<int64_t>(at.row_tile) * at.tiles + tile) * kTile;
  if (warp_row < rows) {
    float* own = tile_sums + at.part * tiles * kTile + warp_row * kFewCols;
    for (int c = 0; c < 2; ++c) {
      wmma::store_matrix_sync(own + 16 * c, sum[c], kFewCols, wmma::mem_row_major);
    }
  }
  __threadfence();  // this thread's sums are visible to every block that sees its ticket
  __syncthreads();
  int* ticket = p.tickets + at.row_tile * at.tiles + tile;
  if (threadIdx.x == 0) stage->is_last = atomicAdd(ticket, 1) == splits - 1;
  __syncthreads();
  if (stage->is_last != 1) return false;
  __threadfence();
  const FewRowsParams<T> q = late();
  add_parts(q, tile_sums, tiles * kTile, splits, row0, rows, tile, stage);
  for (int r = static_cast<int>(threadIdx.x) / kWarp; r < rows; r += kFewThreads / kWarp) {
    const int lane = threadIdx.x % kWarp;  // each thread reads what it has put there
    finish_row(q, row0 + r, tile, stage->ends[0][r][lane], stage->ends[1][r][lane],
               stage->stats.mean[r], stage->stats.rstd[r]);
  }
  if (threadIdx.x == 0) *ticket = 0;  // ready for the next product
  return true;
}

inline int64_t row_tiles(int64_t rows) { return (rows + kFewRows - 1) / kFewRows; }

// Parts of K: by the matrix alone.
inline int64_t splits_of(int64_t k, int64_t cols, int64_t depth) {
  const int64_t steps = (k + depth - 1) / depth;
  const int64_t wanted = kFewBlocks / few_rows_tiles(cols);
  return wanted < 1 ? 1 : wanted < steps ? wanted : steps;
}

template <class T>
FewRowsParams<T> few_rows_params(const FewRowsCudaArgs& a) {
  const auto in = [](const ConstMatrix& m) { return static_cast<const T*>(m.data); };
  const auto out = [](const Matrix& m) { return static_cast<T*>(m.data); };
  return {in(a.x),
          in(a.weight),
          in(a.normed),
          in(a.residual),
          static_cast<const T*>(a.bias),
          in(a.other),
          out(a.grad),
          out(a.y),
          out(a.second),
          a.x.row_stride,
          a.weight.row_stride,
          a.normed.row_stride,
          a.residual.row_stride,
          a.other.row_stride,
          a.grad.row_stride,
          a.y.row_stride,
          a.second.row_stride,
          static_cast<int>(a.x.rows),
          static_cast<int>(a.x.cols),
          static_cast<int>(a.y.cols),
          a.norm,
          a.norm_behind,
          a.behind,
          a.kind,
          a.sums,
          a.tickets};
}

template <class T>
FewRowsPlace few_rows_grid(const FewRowsCudaArgs& a) {
  return {0,
          0,
          0,
          static_cast<int>(few_rows_tiles(a.y.cols)),
          static_cast<int>(row_tiles(a.x.rows)),
          static_cast<int>(splits_of(a.x.cols, a.y.cols, Multiply<T>::kDepth))};
}

// What is read in vectors of 16 bytes.
inline void check_few_rows(const FewRowsCudaArgs& a) {
  const auto aligned = [](const ConstMatrix& m) {
    return m.data == nullptr || rows_aligned(m.data, m.dtype, m.cols, m.row_stride);
  };
  const ConstMatrix grad{a.grad.data, a.grad.dtype, a.grad.rows, a.grad.cols, a.grad.row_stride};
  if (!aligned(a.x) || !aligned(a.weight) || !aligned(a.normed) || !aligned(a.residual) ||
      !aligned(grad) || !is_aligned(a.norm.weight) || !is_aligned(a.norm.bias)) {
    throw std::invalid_argument("few_rows: rows must be aligned to 16 bytes");
  }
}

}  // namespace semobridge

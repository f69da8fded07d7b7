// What stands before and behind a product of few rows (cuda_few_rows.h).
#pragma once
#include "tower_descent/cuda_activation.cuh"
#include "tower_descent/cuda_few_rows.h"

namespace semobridge {

constexpr int kFewThreads = 128;
constexpr int kFewRows = 64;  // of a tile; each of the four warps multiplies sixteen
constexpr int kFewCols = 32;  // of a tile: a warp's lanes, when the tile is finished

template <class T>
struct FewRowsParams {
  const T* x;
  const T* weight;
  const T* normed;
  const T* residual;
  const T* bias;
  const T* other;
  T* grad;
  T* y;
  T* second;
  int64_t x_stride, weight_stride, normed_stride, residual_stride, other_stride, grad_stride,
      y_stride, second_stride;
  int rows, k, cols;
  FewRowsNorm norm, norm_behind;
  Behind behind;
  Activation kind;
  float* sums;
  int* tickets;
};

// Statistics of the rows of a tile.
struct FewRowsStats {
  float mean[kFewRows], rstd[kFewRows], mean_u[kFewRows], mean_ux[kFewRows];
};

// Two numbers of each tile of `width` columns, in the order of the tiles.
__device__ __forceinline__ float2 tile_stats(const FewRowsNorm& norm, int rows, int row, int tile) {
  return reinterpret_cast<const float2*>(norm.stats)[static_cast<int64_t>(tile) * rows + row];
}

// Of row `row` into place `at`. Squared deviations are merged about the common mean (Chan, Golub
// and LeVeque 1983), which loses nothing where a row's mean is large.
template <class T, Before kBefore>
__device__ __forceinline__ void merge_stats(const FewRowsParams<T>& p, int row, int at, bool writes,
                                            FewRowsStats* stats) {
  if constexpr (kBefore == Before::kPlain) return;
  const int tiles = (p.k + kFewCols - 1) / kFewCols;
  const float width = static_cast<float>(p.k);
  float first = 0, second = 0;
  for (int tile = 0; tile < tiles; ++tile) {
    const int left = p.k - tile * kFewCols;
    const float count = static_cast<float>(left < kFewCols ? left : kFewCols);
    const float2 found = tile_stats(p.norm, p.rows, row, tile);
    first += kBefore == Before::kNorm ? count * found.x : found.x;
    second += found.y;
  }
  if constexpr (kBefore == Before::kNormGrad) {
    stats->mean[at] = p.norm.mean[row];
    stats->rstd[at] = p.norm.rstd[row];
    stats->mean_u[at] = first / width;
    stats->mean_ux[at] = second / width;
  } else {
    const float mean = first / width;
    for (int tile = 0; tile < tiles; ++tile) {
      const int left = p.k - tile * kFewCols;
      const float count = static_cast<float>(left < kFewCols ? left : kFewCols);
      const float apart = tile_stats(p.norm, p.rows, row, tile).x - mean;
      second += count * apart * apart;
    }
    const float rstd = 1.0f / sqrtf(second / width + static_cast<float>(p.norm.eps));
    stats->mean[at] = mean;
    stats->rstd[at] = rstd;
    if (writes) {
      p.norm.mean[row] = mean;
      p.norm.rstd[row] = rstd;
    }
  }
}

// kStep elements of before(x) from column k on; `at` is the row's place in `stats`.
template <class T, Before kBefore, int kStep>
__device__ __forceinline__ void left_operand(const FewRowsParams<T>& p, const FewRowsStats& stats,
                                             int row, int at, int k, bool writes,
                                             float (&value)[kStep]) {
  load(p.x + row * p.x_stride + k, value);
  if constexpr (kBefore == Before::kPlain) return;
  float weight[kStep];
  load(p.norm.weight + k, weight);
  const float mean = stats.mean[at], rstd = stats.rstd[at];
  if constexpr (kBefore == Before::kNorm) {
    float bias[kStep];
    load(p.norm.bias + k, bias);
#pragma unroll
    for (int j = 0; j < kStep; ++j) value[j] = (value[j] - mean) * rstd * weight[j] + bias[j];
  } else {
    float normed[kStep], residual[kStep] = {};
    load(p.normed + row * p.normed_stride + k, normed);
    if (p.residual != nullptr) load(p.residual + row * p.residual_stride + k, residual);
    const float mean_u = stats.mean_u[at], mean_ux = stats.mean_ux[at];
#pragma unroll
    for (int j = 0; j < kStep; ++j) {
      const float hat = (normed[j] - mean) * rstd;
      value[j] = (value[j] * weight[j] - mean_u - hat * mean_ux) * rstd + residual[j];
    }
    if (writes) store(value, p.grad + row * p.grad_stride + k);
  }
}

template <class T>
__device__ __forceinline__ float rounded(float value) {
  T stored;
  narrow(value, &stored);
  return widen(stored);
}

__device__ __forceinline__ float activated_by(Activation kind, float h) {
  if (kind == Activation::kGelu) return activated<Activation::kGelu>(h);
  if (kind == Activation::kGeluTanh) return activated<Activation::kGeluTanh>(h);
  return activated<Activation::kQuickGelu>(h);
}

__device__ __forceinline__ float slope_by(Activation kind, float h) {
  if (kind == Activation::kGelu) return activation_slope<Activation::kGelu>(h);
  if (kind == Activation::kGeluTanh) return activation_slope<Activation::kGeluTanh>(h);
  return activation_slope<Activation::kQuickGelu>(h);
}

// What becomes of a row's sum in this lane's column; a warp has the row's part of the tile. `other`
// is the second operand there, 0 past its end, `mean` and `rstd` those of the norm behind.
template <class T>
__device__ __forceinline__ void finish_row(const FewRowsParams<T>& p, int row, int tile, float sum,
                                           float other, float mean, float rstd) {
  const int lane = threadIdx.x % kWarp;
  const int left = p.cols - tile * kFewCols, col = tile * kFewCols + lane;
  const bool live = lane < left;
  const float count = static_cast<float>(left < kFewCols ? left : kFewCols);
  if (live && p.bias != nullptr) sum += widen(p.bias[col]);
  if (p.behind == Behind::kSum) sum += other;
  if (p.behind == Behind::kActivateGrad) sum *= slope_by(p.kind, other);
  const float y = live ? rounded<T>(sum) : 0.0f;
  if (live) {
    narrow(y, p.y + row * p.y_stride + col);
    if (p.behind == Behind::kActivate) {
      narrow(activated_by(p.kind, y), p.second + row * p.second_stride + col);
    }
  }
  if (p.behind != Behind::kSum && p.behind != Behind::kNormGradStats) return;
  float first, second;
  if (p.behind == Behind::kSum) {
    first = warp_sum(y) / count;
    second = warp_sum(live ? (y - first) * (y - first) : 0.0f);
  } else {
    const float u = live ? y * p.norm_behind.weight[col] : 0.0f;
    first = warp_sum(u);
    second = warp_sum(u * (other - mean) * rstd);
  }
  if (lane == 0) {
    reinterpret_cast<float2*>(p.norm_behind.stats)[static_cast<int64_t>(tile) * p.rows + row] = {
        first, second};
  }
}

}  // namespace semobridge

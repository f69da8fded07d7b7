// What a phase of a step is on the device, and who runs it (cuda_step.h).
#pragma once
#include "core/grid_barrier.cuh"
#include "tower_descent/cuda_attention.cuh"
#include "tower_descent/cuda_descend.cuh"
#include "tower_descent/cuda_few_rows_tile.cuh"
#include "tower_descent/cuda_layer_norm.cuh"
#include "tower_descent/cuda_step.h"

namespace semobridge {

constexpr int kStepThreads = 128;
static_assert(kStepThreads == kFewThreads && kStepThreads == few_attention::kThreads &&
                  kStepThreads == kWarp * kNormWarps && kStepThreads == kWarp * kLossWarps,
              "a phase's tile is a block's");

// A pointer that was read from memory may point anywhere, and loads by it would wait for stores to
// shared memory: the compiler is told that these point to global memory.
template <class... P>
__device__ __forceinline__ void in_global([[maybe_unused]] P*&... pointers) {
#ifdef __CUDA_ARCH__
  (__builtin_assume(__isGlobal(pointers)), ...);
#endif
}

enum class PhaseKind : int32_t {
  kNorm,
  kNormGrad,
  kProduct,
  kAttention,
  kAttentionGrad,
  kLoss,
  kUpdate
};

template <class T>
struct NormPhase {
  const T* x;
  const T* delta;
  T* total;
  const float* weight;
  const float* bias;
  T* y;
  float* mean;
  float* rstd;
  int64_t x_stride, delta_stride, total_stride, y_stride, rows, width;
  float eps;
};

template <class T>
struct NormGradPhase {
  const T* x;
  const T* grad_y;
  const float* weight;
  const float* mean;
  const float* rstd;
  const T* residual;
  T* grad_x;
  int64_t x_stride, grad_y_stride, residual_stride, grad_x_stride, rows, width;
};

template <class T>
struct ProductPhase {
  FewRowsParams<T> params;
  FewRowsPlace grid;
  Before before;
  int32_t transposed;
};

template <class T>
struct AttentionPhase {
  few_attention::AttentionParams<T> params;
  const T* grad_o;
  T* out;  // o, or grad_qkv
};

// The numbers of the loss and of the update, which come with the launch.
template <class T>
struct StepEnds {
  const T* features;
  int64_t features_stride;
  const float* targets;
  int64_t targets_stride;
  float grad_scale;
  const int64_t* step;
  int64_t* step_now;
  float* losses;
  T* grad;
  int64_t grad_stride;
  float* unit;
  int64_t samples, dim;
  const T* grad_x;
  int64_t grad_x_stride;
  const int32_t* source;
  int64_t slots;
  float* tokens;
  float* exp_avg;
  float* exp_avg_sq;
  const float* rates;
  const float* corrections;
  const int64_t* read_step;
  int64_t* next_step;
  AdamwFactors<float> factors;
  float grad_factor;
  const float* base;
  int64_t base_samples;
  T* x;
  int64_t x_stride, vectors, width;
};

// Heads whose tiles a product counts: `cols` columns each, as many times side by side as fit.
struct StepHeads {
  int* done;  // [heads] tiles so far
  int32_t heads, cols;

  // Tiles of `kFewCols` columns that hold some of a head's, over all rows.
  __device__ __forceinline__ int tiles_of(int head, int width, int row_tiles) const {
    int tiles = 0;
    for (int first = head * cols; first < width; first += heads * cols) {
      tiles += (first + cols - 1) / kFewCols - first / kFewCols + 1;
    }
    return tiles * row_tiles;
  }
};

// One phase of the list; `body` holds the struct of its kind.
struct alignas(16) StepRecord {
  static constexpr int kBody = 336;
  PhaseKind kind;
  int32_t tiles;
  const void* matrix;                 // that it multiplies by, or null
  int64_t matrix_stride;              // in bytes
  int32_t matrix_rows, matrix_bytes;  // of a row
  StepHeads heads;                    // of a product before an attention by heads; else done = null
  int32_t by_head;                    // of an attention: whoever completed a head's rows has it
  alignas(16) unsigned char body[kBody];

  // A copy, in registers: what is read through a pointer would be read anew behind every store.
  template <class P>
  __device__ __forceinline__ P get() const {
    return *reinterpret_cast<const P*>(body);
  }
};

// A block's shared memory, of one phase after another.
template <class T>
union StepRoom {
  Stage<T, false> plain;
  Stage<T, true> transposed;
  struct {
    alignas(16) T keys[few_attention::kTile * 16 * few_attention::kLanes];
    alignas(16) T values[few_attention::kTile * 16 * few_attention::kLanes];
    float means[kAttentionSlots];
  } attention;
};

// f(tile) for this block's tiles of a phase.
template <class F>
__device__ __forceinline__ void each_tile(int tiles, F f) {
#pragma unroll 1
  for (int tile = static_cast<int>(blockIdx.x); tile < tiles; tile += static_cast<int>(gridDim.x)) {
    if (tile != static_cast<int>(blockIdx.x))
      __syncthreads();  // the last tile's shared memory is free
    f(tile);
  }
}

// A finished tile is counted for its heads; those that are complete are this block's.
__device__ __forceinline__ void count_heads(const StepHeads& heads, const FewRowsPlace& at,
                                            int width, unsigned long long* won) {
  __threadfence();  // this thread's columns are visible to every block that sees them counted
  __syncthreads();
  if (threadIdx.x != 0) return;
  const int first = at.tile * kFewCols;
  const int last = (first + kFewCols < width ? first + kFewCols : width) - 1;
  for (int run = first / heads.cols; run <= last / heads.cols; ++run) {
    const int head = run % heads.heads;
    const int before = atomicAdd(heads.done + head, 1);
    if (before + 1 != heads.tiles_of(head, width, at.row_tiles)) continue;
    heads.done[head] = 0;  // ready for the next product
    *won |= 1ull << head;
  }
}

template <class T>
__device__ __forceinline__ ProductPhase<T> product_of(const StepRecord& record) {
  auto p = record.get<ProductPhase<T>>();
  FewRowsParams<T>& f = p.params;
  in_global(f.x, f.weight, f.normed, f.residual, f.bias, f.other, f.grad, f.y, f.second, f.sums,
            f.tickets);
  in_global(f.norm.weight, f.norm.bias, f.norm.mean, f.norm.rstd, f.norm.stats);
  in_global(f.norm_behind.weight, f.norm_behind.mean, f.norm_behind.rstd, f.norm_behind.stats);
  return p;
}

template <class T, Before kBefore, bool kTransposed>
__device__ __forceinline__ void run_product(const StepRecord& record, int tiles,
                                            Stage<T, kTransposed>* stage, unsigned long long* won) {
  const ProductPhase<T> phase = product_of<T>(record);
  each_tile(tiles, [&](int tile) {
    FewRowsPlace at = phase.grid;
    at.tile = tile % at.tiles;
    at.row_tile = tile / at.tiles % at.row_tiles;
    at.part = tile / at.tiles / at.row_tiles;
    const bool finished = few_rows_tile<T, kBefore>(
        phase.params, [&] { return product_of<T>(record).params; }, at, stage);
    if (finished && record.heads.done != nullptr) {
      count_heads(record.heads, at, phase.params.cols, won);
    }
  });
}

template <class T, Before kBefore>
__device__ __forceinline__ void run_product_of(const StepRecord& record, int tiles,
                                               StepRoom<T>* room, unsigned long long* won) {
  const auto* phase = reinterpret_cast<const ProductPhase<T>*>(record.body);
  if (phase->transposed != 0) return run_product<T, kBefore>(record, tiles, &room->transposed, won);
  run_product<T, kBefore>(record, tiles, &room->plain, won);
}

// All blocks take tiles in turn; by heads (`won` is not null) each those of the heads it has.
template <class T, int kOwn, bool kGrad>
__device__ __forceinline__ void run_attention(const AttentionPhase<T>& phase, int tiles,
                                              StepRoom<T>* room, const unsigned long long* won) {
  constexpr int kStep = kVector<T>;
  auto& own = room->attention;
  few_attention::AttentionParams<T> params = phase.params;
  unsigned long long heads = 1;
  int first = static_cast<int>(blockIdx.x), step = static_cast<int>(gridDim.x);
  if (won != nullptr) {
    __syncthreads();  // the first thread has counted
    heads = *won;
    __threadfence();  // what it reads from here on is no older than the counts
    first = 0;
    step = params.heads;
  }
  bool again = false;
#pragma unroll 1
  for (; heads != 0; heads >>= 1, ++first) {
    if ((heads & 1) == 0) continue;
#pragma unroll 1
    for (int tile = first; tile < tiles; tile += step) {
      if (again) __syncthreads();  // the last tile's shared memory is free
      again = true;
      params.block = tile;
      if constexpr (kGrad) {
        few_attention::attention_backward<T, kOwn, kStep>(params, phase.grad_o, phase.out, own.keys,
                                                          own.values, own.means);
      } else {
        few_attention::attention_forward<T, kOwn, kStep>(params, phase.out, own.keys, own.values);
      }
    }
  }
}

template <class T, bool kGrad>
__device__ __forceinline__ void run_attention_of(const AttentionPhase<T>& phase, int tiles,
                                                 StepRoom<T>* room, const unsigned long long* won) {
  if (phase.params.width <= 8 * few_attention::kLanes)
    return run_attention<T, 8, kGrad>(phase, tiles, room, won);
  run_attention<T, 16, kGrad>(phase, tiles, room, won);
}

template <class T>
__device__ __forceinline__ void run_loss(const StepEnds<T>& e) {
  const int tiles = static_cast<int>((e.samples + kLossWarps - 1) / kLossWarps);
  each_tile(tiles, [&](int tile) {
    cosine_loss_rows<T>(tile, e.features, e.features_stride, e.targets, e.targets_stride,
                        e.grad_scale, e.step, e.step_now, e.losses, e.grad, e.grad_stride, e.unit,
                        e.samples, e.dim);
  });
}

template <class T>
__device__ __forceinline__ void run_update(const StepEnds<T>& e) {
  const int64_t size = e.samples * e.vectors * e.width;
  each_tile(static_cast<int>((size + kStepThreads - 1) / kStepThreads), [&](int tile) {
    adamw_element<T>(static_cast<int64_t>(tile) * kStepThreads + threadIdx.x, e.grad_x,
                     e.grad_x_stride, e.source, e.slots, e.tokens, e.exp_avg, e.exp_avg_sq, e.rates,
                     e.corrections, e.read_step, e.next_step, e.factors, e.grad_factor, e.base,
                     e.base_samples, e.x, e.x_stride, e.samples, e.vectors, e.width);
  });
}

template <class T>
__device__ __forceinline__ AttentionPhase<T> attention_of(const StepRecord& record) {
  auto a = record.get<AttentionPhase<T>>();
  in_global(a.params.qkv, a.params.prefix, a.params.visible, a.params.lse, a.grad_o, a.out);
  return a;
}

template <class T>
__device__ __forceinline__ void run_phase(const StepRecord& record, const StepEnds<T>& ends,
                                          StepRoom<T>* room, unsigned long long* won,
                                          bool by_head) {
  constexpr int kStep = kVector<T>;
  const int tiles = record.tiles;
  switch (record.kind) {
    case PhaseKind::kNorm: {
      auto n = record.get<NormPhase<T>>();
      in_global(n.x, n.delta, n.total, n.weight, n.bias, n.y, n.mean, n.rstd);
      return each_tile(tiles, [&](int tile) {
        layer_norm_rows<T, kStep>(tile, n.x, n.x_stride, n.delta, n.delta_stride, n.total,
                                  n.total_stride, n.weight, n.bias, n.eps, n.y, n.y_stride, n.mean,
                                  n.rstd, n.rows, n.width);
      });
    }
    case PhaseKind::kNormGrad: {
      auto n = record.get<NormGradPhase<T>>();
      in_global(n.x, n.grad_y, n.weight, n.mean, n.rstd, n.residual, n.grad_x);
      return each_tile(tiles, [&](int tile) {
        layer_norm_grad_rows<T, kStep>(tile, n.x, n.x_stride, n.grad_y, n.grad_y_stride, n.weight,
                                       n.mean, n.rstd, n.residual, n.residual_stride, n.grad_x,
                                       n.grad_x_stride, n.rows, n.width);
      });
    }
    case PhaseKind::kProduct: {
      const Before before = reinterpret_cast<const ProductPhase<T>*>(record.body)->before;
      if (before == Before::kPlain)
        return run_product_of<T, Before::kPlain>(record, tiles, room, won);
      if (before == Before::kNorm)
        return run_product_of<T, Before::kNorm>(record, tiles, room, won);
      return run_product_of<T, Before::kNormGrad>(record, tiles, room, won);
    }
    case PhaseKind::kAttention:
      return run_attention_of<T, false>(attention_of<T>(record), tiles, room,
                                        by_head ? won : nullptr);
    case PhaseKind::kAttentionGrad:
      return run_attention_of<T, true>(attention_of<T>(record), tiles, room,
                                       by_head ? won : nullptr);
    case PhaseKind::kLoss:
      return run_loss(ends);
    case PhaseKind::kUpdate:
      return run_update(ends);
  }
}

}  // namespace semobridge

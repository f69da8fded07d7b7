// Eight lanes hold a row of a head, 16 bytes each: 128 bytes are a head of 64 in a half type, and
// a warp's load of four such rows is four whole cache lines. So a warp serves four queries at once,
// a dot product is three exchanges, and no lane is idle. Probabilities live in registers.
//
// A block has one head and a few samples. The prefix's keys and values of the head, which all
// samples share, are staged in shared memory a tile at a time, where the four queries read a key
// as one broadcast; the keys of a sample stay in L1 between its queries.
#pragma once
#include "core/device.cuh"
#include "core/launch.cuh"
#include "tower_descent/cuda_attention.h"

namespace semobridge {
namespace few_attention {

constexpr int kThreads = 128;
constexpr int kLanes = 8;                   // of a row
constexpr int kGroups = kThreads / kLanes;  // rows that a block works on at once
constexpr int kTile = 16;                   // prefix rows in shared memory
// What a lane holds of a row: kOwn elements in runs of kStep, the runs of the eight lanes in turn.
// kStep is 16 bytes where everything is aligned, else 1.
template <class T, int kOwn, int kStep>
struct Row {
  float at[kOwn];

  static __device__ __forceinline__ int place(int run) {
    return (run * kLanes + static_cast<int>(threadIdx.x) % kLanes) * kStep;
  }
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int e = 0; e < kOwn; ++e) at[e] = 0;
  }
  __device__ __forceinline__ void read(const T* row, int width) {
#pragma unroll
    for (int run = 0; run < kOwn / kStep; ++run) {
      float piece[kStep] = {};
      if (place(run) < width) load(row + place(run), piece);
#pragma unroll
      for (int j = 0; j < kStep; ++j) at[run * kStep + j] = piece[j];
    }
  }
  __device__ __forceinline__ void write(float scale, T* row, int width) const {
#pragma unroll
    for (int run = 0; run < kOwn / kStep; ++run) {
      float piece[kStep];
#pragma unroll
      for (int j = 0; j < kStep; ++j) piece[j] = scale * at[run * kStep + j];
      if (place(run) < width) store(piece, row + place(run));
    }
  }
  __device__ __forceinline__ void add(float scale, const Row& other) {
#pragma unroll
    for (int e = 0; e < kOwn; ++e) at[e] += scale * other.at[e];
  }
  // In all eight lanes; every lane of the warp calls it.
  __device__ __forceinline__ float dot(const Row& other) const {
    float sum = 0;
#pragma unroll
    for (int e = 0; e < kOwn; ++e) sum += at[e] * other.at[e];
#pragma unroll
    for (int offset = kLanes / 2; offset > 0; offset /= 2) {
      sum += __shfl_xor_sync(kAllLanes, sum, offset);
    }
    return sum;
  }
};

template <class T>
struct AttentionParams {
  const T* qkv;
  int64_t qkv_stride;
  const T* prefix;
  const uint64_t* visible;
  float* lse;
  int64_t samples, o_stride;
  int heads, width, slots, queries, prefix_rows, block_samples;
  int block = 0;  // of blocks_of

  __device__ __forceinline__ int head() const { return block % heads; }
  __device__ __forceinline__ int model() const { return heads * width; }
  // The head's query (part 0), key or value of a slot.
  __device__ __forceinline__ const T* row(int part, int slot, int64_t sample) const {
    return qkv + (slot * samples + sample) * qkv_stride + part * model() + head() * width;
  }
  __device__ __forceinline__ float* lse_of(int64_t sample, int query) const {
    return lse + (sample * heads + head()) * queries + query;
  }
};

// Which row a group of eight lanes works on; groups past the end repeat a row and write nothing.
struct Item {
  int64_t sample;
  int slot;
  bool live;

  template <class T>
  __device__ __forceinline__ Item(const AttentionParams<T>& a, int at, int slots) {
    const int64_t first = static_cast<int64_t>(a.block / a.heads) * a.block_samples;
    const int64_t last =
        (first + a.block_samples < a.samples ? first + a.block_samples : a.samples) - 1;
    sample = first + at / slots;
    live = sample <= last;
    sample = live ? sample : last;
    slot = at % slots;
  }
};

// Rows [first, first + count) of the prefix's keys and values for this head, side by side.
template <class T, int kOwn, int kStep>
__device__ __forceinline__ int stage_prefix(const AttentionParams<T>& a, int first, T* keys,
                                            T* values) {
  constexpr int kWidest = kOwn * kLanes;
  const int count = a.prefix_rows - first < kTile ? a.prefix_rows - first : kTile;
  __syncthreads();  // the last tile has been used
  for (int r = static_cast<int>(threadIdx.x) / kLanes; r < 2 * count; r += kGroups) {
    const bool value = r >= count;
    const int64_t from = (value ? a.prefix_rows : 0) + first + (value ? r - count : r);
    Row<T, kOwn, kStep> row;
    row.read(a.prefix + from * a.model() + a.head() * a.width, a.width);
    row.write(1.0f, (value ? values : keys) + (value ? r - count : r) * kWidest, a.width);
  }
  __syncthreads();  // the tile is complete
  return count;
}

// A softmax that takes its scores one by one (Milakov & Gimelshein 2018, arXiv 1805.02867).
struct Softmax {
  float largest = -INFINITY, sum = 0;

  // The weight of this score; what was added before is to be scaled by `rest`.
  __device__ __forceinline__ float take(float score, float* rest) {
    const float before = largest;
    largest = score > largest ? score : largest;
    *rest = before == largest ? 1.0f : expf(before - largest);
    const float weight = expf(score - largest);
    sum = sum * *rest + weight;
    return weight;
  }
};

template <class T, int kOwn, int kStep>
__device__ __forceinline__ void attention_forward(const AttentionParams<T>& a, T* o, T* keys,
                                                  T* values) {
  constexpr int kWidest = kOwn * kLanes;
  using Own = Row<T, kOwn, kStep>;
  const int group = static_cast<int>(threadIdx.x) / kLanes;
  const float scale = 1.0f / sqrtf(static_cast<float>(a.width));
  const int items = a.block_samples * a.queries;
  for (int at = group; at - group < items; at += kGroups) {
    const Item item(a, at, a.queries);
    Own q, out, other;
    q.read(a.row(0, item.slot, item.sample), a.width);
    out.clear();
    Softmax softmax;
    const auto take = [&](const T* value, bool seen) {
      const float score = q.dot(other) * scale;
      if (!seen) return;
      float rest;
      const float weight = softmax.take(score, &rest);
      other.read(value, a.width);
#pragma unroll
      for (int e = 0; e < kOwn; ++e) out.at[e] = out.at[e] * rest + weight * other.at[e];
    };
    for (int first = 0; first < a.prefix_rows; first += kTile) {
      const int count = stage_prefix<T, kOwn, kStep>(a, first, keys, values);
      for (int j = 0; j < count; ++j) {
        other.read(keys + j * kWidest, a.width);
        take(values + j * kWidest, true);
      }
    }
    const uint64_t visible = a.visible[item.slot];
#pragma unroll 2
    for (int j = 0; j < a.slots; ++j) {
      other.read(a.row(1, j, item.sample), a.width);
      take(a.row(2, j, item.sample), visible >> j & 1);
    }
    if (!item.live) continue;
    out.write(1.0f / softmax.sum,
              o + (item.slot * a.samples + item.sample) * a.o_stride + a.head() * a.width, a.width);
    if (threadIdx.x % kLanes == 0) {
      *a.lse_of(item.sample, item.slot) = softmax.largest + logf(softmax.sum);
    }
  }
}

template <class T, int kOwn, int kStep>
__device__ __forceinline__ void attention_backward(const AttentionParams<T>& a, const T* grad_o,
                                                   T* grad_qkv, T* keys, T* values,
                                                   float* means) {  // Σ p·dp of the block's queries
  constexpr int kWidest = kOwn * kLanes;
  using Own = Row<T, kOwn, kStep>;
  const int group = static_cast<int>(threadIdx.x) / kLanes;
  const float scale = 1.0f / sqrtf(static_cast<float>(a.width));
  const auto upstream_of = [&](int query, int64_t sample) {
    return grad_o + (query * a.samples + sample) * a.o_stride + a.head() * a.width;
  };
  const auto grad_of = [&](int part, const Item& item) {
    return grad_qkv + (a.row(part, item.slot, item.sample) - a.qkv);
  };

  // grad_q = Σ p·dp·k − (Σ p·dp)·Σ p·k: one pass over the keys, since p is known.
  const int queries = a.block_samples * a.queries;
#pragma unroll 1
  for (int at = group; at - group < queries; at += kGroups) {
    const Item item(a, at, a.queries);
    Own q, upstream, weighted, plain, other;
    q.read(a.row(0, item.slot, item.sample), a.width);
    upstream.read(upstream_of(item.slot, item.sample), a.width);
    weighted.clear();
    plain.clear();
    const float lse = *a.lse_of(item.sample, item.slot);
    float mean = 0;
    const auto take = [&](const T* key, const T* value, bool seen) {
      other.read(value, a.width);
      const float dp = upstream.dot(other);
      other.read(key, a.width);
      const float score = q.dot(other) * scale;
      if (!seen) return;
      const float p = expf(score - lse);
      mean += p * dp;
      weighted.add(p * dp, other);
      plain.add(p, other);
    };
#pragma unroll 1
    for (int first = 0; first < a.prefix_rows; first += kTile) {
      const int count = stage_prefix<T, kOwn, kStep>(a, first, keys, values);
#pragma unroll 1
      for (int j = 0; j < count; ++j) take(keys + j * kWidest, values + j * kWidest, true);
    }
    const uint64_t visible = a.visible[item.slot];
#pragma unroll 1
    for (int j = 0; j < a.slots; ++j) {
      take(a.row(1, j, item.sample), a.row(2, j, item.sample), visible >> j & 1);
    }
    if (!item.live) continue;
    weighted.add(-mean, plain);
    weighted.write(scale, grad_of(0, item), a.width);
    if (threadIdx.x % kLanes == 0) means[at] = mean;
  }
  __syncthreads();  // the slots' sums run over the queries of all groups

  const int slots = a.block_samples * a.slots;
#pragma unroll 1
  for (int at = group; at - group < slots; at += kGroups) {
    const Item item(a, at, a.slots);
    Own key, value, grad_k, grad_v, other;
    key.read(a.row(1, item.slot, item.sample), a.width);
    value.read(a.row(2, item.slot, item.sample), a.width);
    grad_k.clear();
    grad_v.clear();
#pragma unroll 1
    for (int i = 0; i < a.queries; ++i) {
      const bool seen = a.visible[i] >> item.slot & 1;
      other.read(upstream_of(i, item.sample), a.width);
      const float dp = value.dot(other);
      Own query;
      query.read(a.row(0, i, item.sample), a.width);
      const float score = key.dot(query) * scale;
      if (!seen) continue;
      const float p = expf(score - *a.lse_of(item.sample, i));
      const int local = at / a.slots * a.queries + i;
      grad_v.add(p, other);
      grad_k.add(p * (dp - means[item.live ? local : 0]) * scale, query);
    }
    if (!item.live) continue;
    grad_k.write(1.0f, grad_of(1, item), a.width);
    grad_v.write(1.0f, grad_of(2, item), a.width);
    if (item.slot >= a.queries) {
      other.clear();
      other.write(1.0f, grad_of(0, item), a.width);
    }
  }
}

// Samples of a block: as many as keep all groups busy.
inline int block_samples(const AttentionCudaArgs& a) {
  return static_cast<int>(a.slots < kGroups ? kGroups / a.slots : 1);
}

inline unsigned blocks_of(const AttentionCudaArgs& a) {
  const int64_t each = block_samples(a);
  return blocks_for("few_attention", (a.samples + each - 1) / each * a.heads, 1);
}

template <class T>
AttentionParams<T> params_of(const AttentionCudaArgs& a) {
  return {static_cast<const T*>(a.qkv),
          a.qkv_stride,
          static_cast<const T*>(a.prefix_kv),
          a.visible,
          a.lse,
          a.samples,
          a.o_stride,
          static_cast<int>(a.heads),
          static_cast<int>(a.width),
          static_cast<int>(a.slots),
          static_cast<int>(a.queries),
          static_cast<int>(a.prefix),
          block_samples(a)};
}

inline void check_sizes(const AttentionCudaArgs& a) {
  if (a.width > 16 * kLanes) throw std::invalid_argument("few_attention: heads wider than 128");
  if (a.slots > kAttentionSlots) throw std::invalid_argument("few_attention: more than 64 slots");
}

// Whether all loads may be of 16 bytes; `rows` has the stride of o.
inline bool is_vectored(const AttentionCudaArgs& a, const void* rows, const void* grads) {
  return rows_aligned(a.qkv, a.dtype, a.width, a.qkv_stride) &&
         rows_aligned(rows, a.dtype, a.width, a.o_stride) && is_aligned(grads) &&
         is_aligned(a.prefix_kv);
}

}  // namespace few_attention
}  // namespace semobridge

// Eight lanes hold a row of a head, 16 bytes each: 128 bytes are a head of 64 in a half type, and
// a warp's load of four such rows is four whole cache lines. So a warp serves four queries at once,
// a dot product is three exchanges, and no lane is idle. Probabilities live in registers.
//
// A block has one head and a few samples. The prefix's keys and values of the head, which all
// samples share, are staged in shared memory a tile at a time, where the four queries read a key
// as one broadcast; the keys of a sample stay in L1 between its queries.
#include "core/device.cuh"
#include "core/launch.cuh"
#include "tower_descent/cuda_attention.h"

namespace semobridge {
namespace {

constexpr char kOp[] = "few_attention";
constexpr int kThreads = 128;
constexpr int kLanes = 8;                   // of a row
constexpr int kGroups = kThreads / kLanes;  // rows that a block works on at once
constexpr int kTile = 16;                   // prefix rows in shared memory
// Per multiprocessor, by the elements of a lane and of a load: so many that no register spills.
template <int kOwn, int kStep>
constexpr int kBlocks = (kOwn == 8 ? 6 : 4) - (kStep == 1);
template <int kOwn, int kStep>
constexpr int kGradBlocks = kOwn == 8 ? (kStep == 8 ? 5 : 4) : 3 - (kStep == 1);

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

  __device__ __forceinline__ int head() const { return static_cast<int>(blockIdx.x) % heads; }
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
    const int64_t first = static_cast<int64_t>(blockIdx.x) / a.heads * a.block_samples;
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
__global__ void __launch_bounds__(kThreads, kBlocks<kOwn, kStep>)
    attention_fwd_kernel(const AttentionParams<T> a, T* __restrict__ o) {
  constexpr int kWidest = kOwn * kLanes;
  SB_SHARED(T, keys, kTile * kWidest);
  SB_SHARED(T, values, kTile * kWidest);
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
__global__ void __launch_bounds__(kThreads, kGradBlocks<kOwn, kStep>)
    attention_bwd_kernel(const AttentionParams<T> a, const T* __restrict__ grad_o,
                         T* __restrict__ grad_qkv) {
  constexpr int kWidest = kOwn * kLanes;
  SB_SHARED(T, keys, kTile * kWidest);
  SB_SHARED(T, values, kTile * kWidest);
  SB_SHARED(float, means, kAttentionSlots);  // Σ p·dp of the block's queries
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
int block_samples(const AttentionCudaArgs& a) {
  return static_cast<int>(a.slots < kGroups ? kGroups / a.slots : 1);
}

unsigned blocks_of(const AttentionCudaArgs& a) {
  const int64_t each = block_samples(a);
  return blocks_for(kOp, (a.samples + each - 1) / each * a.heads, 1);
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

// Calls f with the storage type, the elements of a head that a lane holds, and those of a load.
template <class F>
void with_shape(const AttentionCudaArgs& a, const void* rows, const void* grads, F f) {
  if (a.width > 16 * kLanes) throw std::invalid_argument("few_attention: heads wider than 128");
  if (a.slots > kAttentionSlots) throw std::invalid_argument("few_attention: more than 64 slots");
  const bool aligned = rows_aligned(a.qkv, a.dtype, a.width, a.qkv_stride) &&
                       rows_aligned(rows, a.dtype, a.width, a.o_stride) && is_aligned(grads) &&
                       is_aligned(a.prefix_kv);
  with_storage(kOp, a.dtype, [&](auto storage) {
    constexpr int kStep = kVector<typename decltype(storage)::type>;
    const auto with_own = [&](auto own) {
      if (aligned) return f(storage, own, std::integral_constant<int, kStep>{});
      f(storage, own, std::integral_constant<int, 1>{});
    };
    if (a.width <= 8 * kLanes) return with_own(std::integral_constant<int, 8>{});
    with_own(std::integral_constant<int, 16>{});
  });
}

}  // namespace

void attention_cuda(const AttentionCudaArgs& a, int device, void* stream) {
  if (a.samples * a.heads * a.queries == 0) return;
  with_shape(a, a.o, nullptr, [&](auto storage, auto own, auto step) {
    using T = typename decltype(storage)::type;
    launch(kOp, attention_fwd_kernel<T, decltype(own)::value, decltype(step)::value>, blocks_of(a),
           kThreads, device, stream, params_of<T>(a), static_cast<T*>(a.o));
  });
}

void attention_grad_cuda(const AttentionGradCudaArgs& g, int device, void* stream) {
  const AttentionCudaArgs& a = g.forward;
  if (a.samples * a.heads * a.slots == 0) return;
  with_shape(a, g.grad_o, g.grad_qkv, [&](auto storage, auto own, auto step) {
    using T = typename decltype(storage)::type;
    launch(kOp, attention_bwd_kernel<T, decltype(own)::value, decltype(step)::value>, blocks_of(a),
           kThreads, device, stream, params_of<T>(a), static_cast<const T*>(g.grad_o),
           static_cast<T*>(g.grad_qkv));
  });
}

}  // namespace semobridge

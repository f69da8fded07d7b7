// One block per sample and head, its warps sharing out the queries. A lane owns `width / 32`
// elements of the head (rounded up), so that every sum over keys is private to a lane and every dot
// product is one warp reduction; the keys of a sample (6 for a text of one pseudo-token) stay in
// L1.
#include "core/device.cuh"
#include "core/launch.cuh"
#include "tower_descent/cuda_attention.h"

namespace semobridge {
namespace {

constexpr char kOp[] = "few_attention";
constexpr int kWarpsPerBlock = 4;
// Per multiprocessor: room for 64 and 80 registers, so that none spill.
constexpr int kBlocks = 8;
constexpr int kGradBlocks = 6;

// Where one sample's head finds its rows; columns of other heads are `column` away.
template <class T>
struct Head {
  const T* qkv;  // slot 0's row of the sample, at the head's first query column
  const T* prefix;
  int64_t slot_stride, model, prefix_rows, width;

  __device__ __forceinline__ const T* query(int64_t slot) const { return qkv + slot * slot_stride; }
  // Key (part 1) or value (part 2) number j of a query's list.
  __device__ __forceinline__ const T* entry(int part, const int32_t* list, int64_t j) const {
    if (j < prefix_rows) return prefix + ((part - 1) * prefix_rows + j) * model;
    return qkv + list[j - prefix_rows] * slot_stride + part * model;
  }
};

template <class T>
struct AttentionParams {
  const T* qkv;
  int64_t qkv_stride;
  const T* prefix;
  const int32_t* visible;
  const int32_t* visible_begin;
  float* p;
  int64_t samples, heads, width, slots, queries, prefix_rows, keys, o_stride;

  __device__ __forceinline__ Head<T> head(int64_t sample, int64_t h) const {
    const int64_t column = h * width;
    return {qkv + sample * qkv_stride + column,
            prefix == nullptr ? nullptr : prefix + column,
            samples * qkv_stride,
            heads * width,
            prefix_rows,
            width};
  }
};

template <class T, int kOwn>
__device__ __forceinline__ void load_row(const T* row, int64_t width, float (&own)[kOwn]) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int e = 0; e < kOwn; ++e)
    own[e] = e * kWarp + lane < width ? widen(row[e * kWarp + lane]) : 0;
}

template <class T, int kOwn>
__device__ __forceinline__ void store_row(const float (&own)[kOwn], int64_t width, T* row) {
  const int lane = threadIdx.x % kWarp;
#pragma unroll
  for (int e = 0; e < kOwn; ++e) {
    if (e * kWarp + lane < width) narrow(own[e], row + e * kWarp + lane);
  }
}

template <class T, int kOwn>
__device__ __forceinline__ float dot_row(const float (&own)[kOwn], const T* row, int64_t width) {
  float other[kOwn], sum = 0;
  load_row(row, width, other);
#pragma unroll
  for (int e = 0; e < kOwn; ++e) sum += own[e] * other[e];
  return warp_sum(sum);
}

template <int kOwn, class T>
__device__ __forceinline__ void add_row(float scale, const T* row, int64_t width,
                                        float (&own)[kOwn]) {
  float other[kOwn];
  load_row(row, width, other);
#pragma unroll
  for (int e = 0; e < kOwn; ++e) own[e] += scale * other[e];
}

template <class T, int kOwn>
__global__ void __launch_bounds__(kWarp* kWarpsPerBlock, kBlocks)
    attention_fwd_kernel(const AttentionParams<T> a, T* __restrict__ o) {
  const int lane = threadIdx.x % kWarp;
  const int64_t sample = blockIdx.x / a.heads, h = blockIdx.x % a.heads;
  const Head<T> head = a.head(sample, h);
  const float scale = 1.0f / sqrtf(static_cast<float>(a.width));
  for (int64_t i = threadIdx.x / kWarp; i < a.queries; i += kWarpsPerBlock) {
    const int32_t* list = a.visible + a.visible_begin[i];
    const int64_t keys = a.prefix_rows + a.visible_begin[i + 1] - a.visible_begin[i];
    float* p = a.p + (static_cast<int64_t>(blockIdx.x) * a.queries + i) * a.keys;
    float q[kOwn];
    load_row(head.query(i), a.width, q);
    float largest = -INFINITY;
    for (int64_t j = 0; j < keys; ++j) {
      const float score = dot_row(q, head.entry(1, list, j), a.width) * scale;
      largest = score > largest ? score : largest;
      if (lane == 0) p[j] = score;
    }
    __syncwarp();  // lane 0 has written what all read
    float sum = 0;
    for (int64_t j = lane; j < keys; j += kWarp) {
      const float e = expf(p[j] - largest);
      p[j] = e;
      sum += e;
    }
    const float inverse = 1.0f / warp_sum(sum);
    float out[kOwn] = {};
    for (int64_t j = 0; j < keys; ++j) {
      add_row(p[j] * inverse, head.entry(2, list, j), a.width, out);
    }
    store_row(out, a.width, o + (i * a.samples + sample) * a.o_stride + h * a.width);
    __syncwarp();  // all have read the unscaled values
    for (int64_t j = lane; j < keys; j += kWarp) p[j] *= inverse;
  }
}

template <class T, int kOwn>
__global__ void __launch_bounds__(kWarp* kWarpsPerBlock, kGradBlocks)
    attention_bwd_kernel(const AttentionParams<T> a, const T* __restrict__ grad_o, float* ds,
                         T* __restrict__ grad_qkv) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t sample = blockIdx.x / a.heads, h = blockIdx.x % a.heads;
  const int64_t model = a.heads * a.width;
  const Head<T> head = a.head(sample, h);
  const float scale = 1.0f / sqrtf(static_cast<float>(a.width));
  const float* p = a.p + static_cast<int64_t>(blockIdx.x) * a.queries * a.keys;
  ds += static_cast<int64_t>(blockIdx.x) * a.queries * a.keys;
  T* grad = grad_qkv + sample * a.qkv_stride + h * a.width;

#pragma unroll 1
  for (int64_t i = warp; i < a.slots; i += kWarpsPerBlock) {
    float grad_q[kOwn] = {};
    if (i < a.queries) {
      const int32_t* list = a.visible + a.visible_begin[i];
      const int64_t keys = a.prefix_rows + a.visible_begin[i + 1] - a.visible_begin[i];
      const float* p_row = p + i * a.keys;
      float* ds_row = ds + i * a.keys;
      float upstream[kOwn], mean = 0;
      load_row(grad_o + (i * a.samples + sample) * a.o_stride + h * a.width, a.width, upstream);
#pragma unroll 2
      for (int64_t j = 0; j < keys; ++j) {
        const float dp = dot_row(upstream, head.entry(2, list, j), a.width);
        mean += p_row[j] * dp;
        if (lane == 0) ds_row[j] = dp;
      }
      __syncwarp();
      for (int64_t j = lane; j < keys; j += kWarp) {
        ds_row[j] = p_row[j] * (ds_row[j] - mean) * scale;
      }
      __syncwarp();
#pragma unroll 2
      for (int64_t j = 0; j < keys; ++j) {
        add_row(ds_row[j], head.entry(1, list, j), a.width, grad_q);
      }
    }
    store_row(grad_q, a.width, grad + i * head.slot_stride);
  }
  __syncthreads();  // the slots' sums run over the queries of all warps
#pragma unroll 1
  for (int64_t s = warp; s < a.slots; s += kWarpsPerBlock) {
    float grad_k[kOwn] = {}, grad_v[kOwn] = {};
#pragma unroll 1
    for (int64_t i = 0; i < a.queries; ++i) {
      const int32_t first = a.visible_begin[i], last = a.visible_begin[i + 1];
      const bool full = last - first == a.slots;  // and in order: no need to look for s
#pragma unroll 1
      for (int64_t at = full ? first + s : first; at < (full ? first + s + 1 : last); ++at) {
        if (a.visible[at] != s) continue;
        const int64_t j = i * a.keys + a.prefix_rows + at - first;
        add_row(ds[j], head.query(i), a.width, grad_k);
        add_row(p[j], grad_o + (i * a.samples + sample) * a.o_stride + h * a.width, a.width,
                grad_v);
      }
    }
    store_row(grad_k, a.width, grad + s * head.slot_stride + model);
    store_row(grad_v, a.width, grad + s * head.slot_stride + 2 * model);
  }
}

template <class T>
AttentionParams<T> params_of(const AttentionCudaArgs& a) {
  return {static_cast<const T*>(a.qkv),
          a.qkv_stride,
          static_cast<const T*>(a.prefix_kv),
          a.visible,
          a.visible_begin,
          a.p,
          a.samples,
          a.heads,
          a.width,
          a.slots,
          a.queries,
          a.prefix,
          a.keys,
          a.o_stride};
}

// Calls f with the storage type and the elements of a head that a lane owns.
template <class F>
void with_shape(const AttentionCudaArgs& a, F f) {
  if (a.width > 4 * kWarp) throw std::invalid_argument("few_attention: heads wider than 128");
  with_storage(kOp, a.dtype, [&](auto storage) {
    if (a.width <= 2 * kWarp) return f(storage, std::integral_constant<int, 2>{});
    f(storage, std::integral_constant<int, 4>{});
  });
}

}  // namespace

void attention_cuda(const AttentionCudaArgs& a, int device, void* stream) {
  if (a.samples * a.heads * a.queries == 0) return;
  with_shape(a, [&](auto storage, auto own) {
    using T = typename decltype(storage)::type;
    launch(kOp, attention_fwd_kernel<T, decltype(own)::value>,
           blocks_for(kOp, a.samples * a.heads, 1), kWarp * kWarpsPerBlock, device, stream,
           params_of<T>(a), static_cast<T*>(a.o));
  });
}

void attention_grad_cuda(const AttentionGradCudaArgs& g, int device, void* stream) {
  const AttentionCudaArgs& a = g.forward;
  if (a.samples * a.heads * a.slots == 0) return;
  with_shape(a, [&](auto storage, auto own) {
    using T = typename decltype(storage)::type;
    launch(kOp, attention_bwd_kernel<T, decltype(own)::value>,
           blocks_for(kOp, a.samples * a.heads, 1), kWarp * kWarpsPerBlock, device, stream,
           params_of<T>(a), static_cast<const T*>(g.grad_o), g.ds, static_cast<T*>(g.grad_qkv));
  });
}

}  // namespace semobridge

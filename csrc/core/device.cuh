// What the kernels share: warp reductions, storage types, vector loads.
//
// Storage is float, half or bfloat16; arithmetic is float32 throughout. A row belongs to one warp
// or one block and is summed in one fixed order, so a result depends neither on the batch nor on
// the grid.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "core/view.h"

namespace semobridge {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

template <class T>
__device__ __forceinline__ T warp_sum(T value) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(kAllLanes, value, offset);
  }
  return value;
}

template <class T>
__device__ __forceinline__ T warp_max(T value) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    const T other = __shfl_xor_sync(kAllLanes, value, offset);
    value = other > value ? other : value;
  }
  return value;
}

// The sum over a block of kCount warps, in every thread. `partial` holds kCount values.
template <int kCount, class T>
__device__ __forceinline__ T block_sum(T value, T* partial) {
  value = warp_sum(value);
  __syncthreads();  // the last use of `partial` is over
  if (threadIdx.x % kWarp == 0) partial[threadIdx.x / kWarp] = value;
  __syncthreads();
  T sum = 0;
  for (int w = 0; w < kCount; ++w) sum += partial[w];
  return sum;
}

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }

__device__ __forceinline__ void narrow(float x, float* out) { *out = x; }
__device__ __forceinline__ void narrow(double x, double* out) { *out = x; }
__device__ __forceinline__ void narrow(float x, __half* out) { *out = __float2half_rn(x); }
__device__ __forceinline__ void narrow(float x, __nv_bfloat16* out) {
  *out = __float2bfloat16_rn(x);
}

// N consecutive values, moved in pieces of at most 16 bytes: the widest load there is.
template <class T, int N>
struct alignas(N * sizeof(T) < 16 ? N * sizeof(T) : 16) Pack {
  T at[N];
};

template <int N, class T>
__device__ __forceinline__ void load(const T* from, float (&to)[N]) {
  const Pack<T, N> pack = *reinterpret_cast<const Pack<T, N>*>(from);
#pragma unroll
  for (int i = 0; i < N; ++i) to[i] = widen(pack.at[i]);
}

template <int N, class T>
__device__ __forceinline__ void store(const float (&from)[N], T* to) {
  Pack<T, N> pack;
#pragma unroll
  for (int i = 0; i < N; ++i) narrow(from[i], &pack.at[i]);
  *reinterpret_cast<Pack<T, N>*>(to) = pack;
}

// What one lane moves at a time when everything is aligned.
template <class T>
constexpr int kVector = 16 / static_cast<int>(sizeof(T));

inline bool is_aligned(const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; }

// Rows that can be read in vectors: aligned base, and a stride that keeps it.
inline bool rows_aligned(const void* data, DType dtype, int64_t cols, int64_t row_stride) {
  const int64_t lanes = 16 / dtype_size(dtype);
  return is_aligned(data) && cols % lanes == 0 && row_stride % lanes == 0;
}

template <class T>
struct Storage {
  using type = T;
};

// Calls f with the storage type of `dtype`.
template <class F>
void with_storage(const char* op, DType dtype, F f) {
  switch (dtype) {
    case DType::kFloat32:
      return f(Storage<float>{});
    case DType::kFloat16:
      return f(Storage<__half>{});
    case DType::kBFloat16:
      return f(Storage<__nv_bfloat16>{});
    default:
      throw std::invalid_argument(std::string(op) + ": no CUDA kernel for float64");
  }
}

}  // namespace semobridge

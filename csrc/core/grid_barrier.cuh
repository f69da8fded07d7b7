// Where all threads of a cooperative launch meet, and a hint to fetch what they read behind it.
#pragma once
#include <cuda_runtime.h>

namespace semobridge {

// All that any thread of the grid has written is seen by all of them behind it, through L1 too:
// what one launch writes and reads must not be read through the read-only path (const
// __restrict__).
//
// `arrived` is one zero of the device's memory before the first launch, and counts on from launch
// to launch: nobody sets it back, so nobody waits for that either. All its launches have the same
// number of blocks, one after another. `target` is the caller's own, 0 at its start.
__device__ __forceinline__ void grid_barrier(unsigned long long* arrived,
                                             unsigned long long* target) {
  constexpr unsigned kNap = 20;  // nanoseconds: a shorter wait crowds the counter
  __threadfence();               // what this thread wrote is visible to who sees its block counted
  __syncthreads();
  if (threadIdx.x == 0) {
    const unsigned long long blocks = gridDim.x;
    const unsigned long long before = atomicAdd(arrived, 1ull);
    *target = *target == 0 ? (before / blocks + 1) * blocks : *target + blocks;
    while (*static_cast<volatile unsigned long long*>(arrived) < *target) __nanosleep(kNap);
  }
  __syncthreads();
  __threadfence();  // what it reads from here on is no older than the count
}

// `rows` rows of `bytes`, on their way to L2 by all threads of the grid. Nothing waits for them.
__device__ __forceinline__ void prefetch_rows(const void* first, int rows, int bytes,
                                              int64_t stride) {
  constexpr int kLine = 128;
  const int lines = (bytes + kLine - 1) / kLine;
  const int step = static_cast<int>(gridDim.x * blockDim.x);
  for (int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x); i < rows * lines;
       i += step) {
    [[maybe_unused]] const char* at =
        static_cast<const char*>(first) + i / lines * stride + i % lines * kLine;
#ifdef __CUDA_ARCH__
    asm volatile("prefetch.global.L2 [%0];" ::"l"(at));
#endif
  }
}

}  // namespace semobridge

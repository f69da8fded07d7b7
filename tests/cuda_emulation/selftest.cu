// Small kernels, right and wrong, that show what the emulation does and what it refuses.
#include "bindings.h"
#include "core/grid_barrier.cuh"
#include "core/launch.cuh"
#include "core/view.h"

namespace {

// Reverses a block through shared memory.
__global__ void reverse_kernel(const float* x, float* y, bool barrier) {
  SB_SHARED(float, held, 64);
  held[threadIdx.x] = x[blockIdx.x * 64 + threadIdx.x];
  if (barrier) __syncthreads();
  y[blockIdx.x * 64 + threadIdx.x] = held[63 - threadIdx.x];
}

__global__ void unwritten_kernel(float* y) {
  SB_SHARED(float, held, 64);
  y[threadIdx.x] = held[threadIdx.x];
}

__global__ void divergent_barrier_kernel(float* y) {
  if (threadIdx.x < 40) __syncthreads();
  y[threadIdx.x] = 1;
}

__global__ void two_barriers_kernel(float* y) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  y[threadIdx.x] = 1;
}

__global__ void divergent_shuffle_kernel(float* y) {
  float value = static_cast<float>(threadIdx.x);
  if (threadIdx.x % 32 != 5) value = __shfl_xor_sync(0xffffffffu, value, 1);
  y[threadIdx.x] = value;
}

__global__ void barrier_against_shuffle_kernel(float* y) {
  float value = 1;
  if (threadIdx.x < 3) {
    __syncthreads();
  } else {
    value = __shfl_xor_sync(0xffffffffu, value, 1);
  }
  y[threadIdx.x] = value;
}

__global__ void half_mask_kernel(float* y) { y[threadIdx.x] = __shfl_xor_sync(0xffffu, 1.0f, 1); }

// y: lane + neighbour, the value 3 lanes below, the value of lane 7, and a vote.
__global__ void warp_kernel(float* y) {
  const int t = static_cast<int>(threadIdx.x);
  const float value = static_cast<float>(t);
  y[t] = value + __shfl_xor_sync(0xffffffffu, value, 1);
  y[64 + t] = __shfl_up_sync(0xffffffffu, value, 3);
  y[128 + t] = __shfl_sync(0xffffffffu, value, 7);
  y[192 + t] = static_cast<float>(__builtin_popcount(__ballot_sync(0xffffffffu, t % 3 == 0)));
}

__global__ void count_kernel(int* count) {
  __threadfence();
  __syncthreads();
  atomicAdd(count, 1);
}

__global__ void count_unfenced_kernel(int* count) {
  __syncthreads();
  atomicAdd(count, 1);
}

// Each block reads what the next one wrote, twice round; `away` does not come to the second
// meeting.
__global__ void around_kernel(float* y, unsigned long long* arrived, bool meets, unsigned away) {
  unsigned long long target = 0;
  const unsigned mine = blockIdx.x * 64 + threadIdx.x;
  const unsigned next = (blockIdx.x + 1) % gridDim.x * 64 + threadIdx.x;
  y[mine] = static_cast<float>(mine);
  if (meets) semobridge::grid_barrier(arrived, &target);
  const float value = y[next];
  if (blockIdx.x == away) return;
  if (meets) semobridge::grid_barrier(arrived, &target);
  y[mine] = value;
}

}  // namespace

void bind_selftest(py::module_& m) {
  m.def("selftest", [](const std::string& name, uintptr_t x_at, uintptr_t y_at) {
    const auto* x = reinterpret_cast<const float*>(x_at);
    auto* y = reinterpret_cast<float*>(y_at);
    const auto go = [&](auto kernel, auto... args) {
      semobridge::launch("selftest", kernel, dim3(1), dim3(64), 0, nullptr, args...);
    };
    if (name == "reverse" || name == "reverse without its barrier") {
      semobridge::launch("selftest", reverse_kernel, dim3(3), dim3(64), 0, nullptr, x, y,
                         name == "reverse");
    } else if (name == "unwritten") {
      go(unwritten_kernel, y);
    } else if (name == "divergent barrier") {
      go(divergent_barrier_kernel, y);
    } else if (name == "two barriers") {
      go(two_barriers_kernel, y);
    } else if (name == "divergent shuffle") {
      go(divergent_shuffle_kernel, y);
    } else if (name == "barrier against shuffle") {
      go(barrier_against_shuffle_kernel, y);
    } else if (name == "half mask") {
      go(half_mask_kernel, y);
    } else if (name == "warp") {
      go(warp_kernel, y);
    } else if (name == "count") {
      semobridge::launch("selftest", count_kernel, dim3(5, 3, 2), dim3(32, 2), 0, nullptr,
                         reinterpret_cast<int*>(y));
    } else if (name == "count without a fence") {
      semobridge::launch("selftest", count_unfenced_kernel, dim3(2), dim3(64), 0, nullptr,
                         reinterpret_cast<int*>(y));
    } else if (name.rfind("around", 0) == 0) {
      semobridge::launch_at_once("selftest", around_kernel, dim3(4), dim3(64), 0, nullptr, y,
                                 reinterpret_cast<unsigned long long*>(x_at),
                                 name != "around without a barrier",
                                 name == "around but for one" ? 2u : 4u);
    } else if (name == "too many threads") {
      semobridge::launch("selftest", unwritten_kernel, dim3(1), dim3(2048), 0, nullptr, y);
    } else {
      throw std::invalid_argument("no such kernel: " + name);
    }
  });
}

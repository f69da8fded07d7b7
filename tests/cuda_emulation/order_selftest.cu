// Small kernels whose accesses are ordered, or not, or spread: what the watchers must see.
#include "bindings.h"
#include "core/launch.cuh"

namespace {

constexpr unsigned kAll = 0xffffffffu;
enum class Order { kNone, kShuffle, kVote, kWarp, kBlock };

// A neighbour's value through shared memory; then it is overwritten.
__global__ void neighbour_kernel(float* y, Order before, Order after) {
  SB_SHARED(float, held, 64);
  const int t = static_cast<int>(threadIdx.x);
  const auto meet = [&](Order order) {
    if (order == Order::kShuffle) __shfl_xor_sync(kAll, t, 1);
    if (order == Order::kVote) __ballot_sync(kAll, t);
    if (order == Order::kWarp) __syncwarp();
    if (order == Order::kBlock) __syncthreads();
  };
  held[t] = static_cast<float>(t);
  meet(before);
  const float other = held[t ^ 1];
  meet(after);
  held[t] = other + 1;
  y[blockIdx.x * 64 + threadIdx.x] = other;
}

// The other half of the block, which __syncwarp does not order.
__global__ void across_kernel(float* y, bool block) {
  SB_SHARED(float, held, 64);
  const int t = static_cast<int>(threadIdx.x);
  held[t] = static_cast<float>(t);
  if (block) {
    __syncthreads();
  } else {
    __syncwarp();
  }
  y[t] = held[t ^ 32];
}

// Global memory: two blocks, one place.
__global__ void same_place_kernel(float* y) { y[threadIdx.x] = 1; }

struct Ticket {
  bool fence, barrier, fence_behind, barrier_behind, one_fence;
};

// Every block leaves 64 values; who takes the last ticket adds them up.
__global__ void last_block_kernel(float* values, float* y, int* ticket, Ticket is) {
  SB_SHARED(int, last, 1);
  const unsigned t = threadIdx.x, blocks = gridDim.x;
  values[blockIdx.x * 64 + t] = 1;
  if (is.fence) __threadfence();
  if (is.barrier) __syncthreads();
  if (is.one_fence && t == 0) __threadfence();
  if (t == 0) {
    last[0] = atomicAdd(ticket, 1) == static_cast<int>(blocks) - 1;
    if (is.one_fence) __threadfence();
  }
  if (is.barrier_behind) __syncthreads();
  if (last[0] != 1) return;
  if (is.fence_behind) __threadfence();
  float sum = 0;
  for (unsigned b = 0; b < blocks; ++b) sum += __ldcg(values + b * 64 + t);
  y[t] = sum;
  if (t == 0) *ticket = 0;
}

__global__ void reset_too_early_kernel(int* ticket) {
  if (threadIdx.x == 0) atomicAdd(ticket, 1);
  if (threadIdx.x == 1) *ticket = 0;
}

__global__ void strided_kernel(const float* x, float* y, int stride) {
  y[threadIdx.x] = x[threadIdx.x * static_cast<unsigned>(stride)];
}

struct alignas(16) Four {
  float at[4];
};

__global__ void wide_kernel(const Four* x, Four* y) { y[threadIdx.x] = x[threadIdx.x]; }

// 16 bytes a lane into shared memory, `step` packs apart; then all read the first.
__global__ void wide_shared_kernel(const Four* x, float* y, int step) {
  SB_SHARED(Four, held, 64);
  const unsigned t = threadIdx.x;
  if (t >= 32) return;
  held[t * static_cast<unsigned>(step)] = x[t];
  const Four first = held[0];
  y[t] = first.at[t % 4];
}

// Columns of a tile of 32 rows: without padding all of them lie in one bank.
template <int kPad>
__global__ void column_kernel(float* y) {
  SB_SHARED(float, tile, 32 * (32 + kPad));
  const unsigned t = threadIdx.x % 32;
  if (threadIdx.x >= 32) return;
  tile[t * (32 + kPad)] = 1;
  y[t] = tile[t * (32 + kPad)];
}

}  // namespace

void bind_selftest_order(py::module_& m) {
  m.def("order", [](const std::string& name, uintptr_t x_at, uintptr_t y_at, int argument) {
    auto* x = reinterpret_cast<float*>(x_at);
    auto* y = reinterpret_cast<float*>(y_at);
    auto* count = reinterpret_cast<int*>(y_at) + 128;
    const auto go = [&](unsigned blocks, auto kernel, auto... args) {
      semobridge::launch("order", kernel, dim3(blocks), dim3(64), 0, nullptr, args...);
    };
    const auto order = static_cast<Order>(argument);
    if (name == "before") return go(2, neighbour_kernel, y, order, Order::kBlock);
    if (name == "after") return go(2, neighbour_kernel, y, Order::kBlock, order);
    if (name == "across") return go(1, across_kernel, y, argument == 1);
    if (name == "same place") return go(static_cast<unsigned>(argument), same_place_kernel, y);
    if (name == "last block") {
      const Ticket is{(argument & 1) != 0, (argument & 2) != 0, (argument & 4) != 0,
                      (argument & 8) != 0, (argument & 16) != 0};
      return go(5, last_block_kernel, x, y, count, is);
    }
    if (name == "reset too early") return go(1, reset_too_early_kernel, count);
    if (name == "strided") return go(1, strided_kernel, x, y, argument);
    if (name == "wide") {
      return go(1, wide_kernel, reinterpret_cast<const Four*>(x), reinterpret_cast<Four*>(y));
    }
    if (name == "wide shared") {
      return go(1, wide_shared_kernel, reinterpret_cast<const Four*>(x), y, argument);
    }
    if (name == "column" && argument == 0) return go(1, column_kernel<0>, y);
    if (name == "column") return go(1, column_kernel<1>, y);
    throw std::invalid_argument("no such kernel: " + name);
  });
}

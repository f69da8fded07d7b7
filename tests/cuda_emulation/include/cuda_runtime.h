// The part of the CUDA runtime and of its device language that csrc/cuda uses, on the host.
//
// One fiber per thread, a few blocks at once. Barriers and warp operations really wait; a barrier
// that part of the block never reaches, or two places that wait for each other, end the launch with
// an error. Shared memory holds NaN until it is written. The order in which fibers and blocks run
// is a parameter: an unsynchronised access gives the wrong answer in one of them.
#pragma once
#include <math.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <set>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#if defined(__SANITIZE_THREAD__)  // every access is watched: one instruction, one place, as on a
                                  // GPU
#define __forceinline__ inline __attribute__((always_inline))
#else
#define __forceinline__ inline
#endif
#define SB_UNWATCHED __attribute__((no_sanitize("thread")))  // what a GPU would keep in registers
#define __launch_bounds__(...)
#define SB_SHARED(type, name, count) \
  static const char name##_site = 0; \
  type* const name =                 \
      static_cast<type*>(cuda_emulation::shared_memory(&name##_site, sizeof(type) * (count)))

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

struct alignas(8) float2 {
  float x, y;
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

typedef struct CUstream_st* cudaStream_t;
enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorCooperativeLaunchTooLarge = 720,
  cudaErrorStreamCaptureUnsupported = 900
};
enum cudaStreamCaptureMode { cudaStreamCaptureModeGlobal = 0, cudaStreamCaptureModeRelaxed = 2 };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16, cudaDevAttrCooperativeLaunch = 95 };
enum cudaDriverEntryPointQueryResult { cudaDriverEntryPointSuccess = 0 };
struct cudaFuncAttributes {};
constexpr unsigned long long cudaEnableDefault = 0;
#define CUDART_VERSION 13000

namespace cuda_emulation {

constexpr int kWarp = 32;
constexpr size_t kSlot = 16;  // bytes a lane can exchange

enum class Wait { kNone, kBlock, kShuffle, kVote, kSyncWarp, kMatrix };
enum class Order { kAscending = 0, kDescending = 1, kShuffled = 2 };

void set_order(Order order, uint64_t seed);
// `at_once`: all blocks are resident together, and may wait for each other.
void run(dim3 grid, dim3 block, const std::function<void()>& thread, const void* kernel = nullptr,
         bool at_once = false);
void* shared_memory(const void* site, size_t bytes);
void sync_block(int line);
// Leaves `value` for the other lanes, waits for all 32, returns theirs in slots of kSlot bytes.
const unsigned char* exchange(Wait kind, int line, const void* value, size_t bytes, unsigned mask);
unsigned lane();
// Memory is sequentially consistent here, so a forgotten fence would not show by itself. The one
// pattern that needs fences is checked instead: whoever raises a counter does so for a block whose
// threads have all fenced their writes, and what other blocks wrote is read behind another fence.
void fence();
void raises_counter();
void reads_of_others();
// A thread that waits for others lets them run; all that are left napping end the launch.
void nap();
// For sources that leave one of several barriers out: the number of it, -1 for none.
extern int left_out;
void touches_atomically(const void* at, size_t size, void* code);
// Ends the launch with an error.
[[noreturn]] void refuse(const char* what);
extern long launches, barriers, exchanges;
extern cudaError_t last_error;
extern int device;
// Devices with a context; kernels by device that were loaded; whether the current stream is
// captured, and how the thread's own calls stand to that.
extern std::set<int> contexts;
extern std::set<std::pair<const void*, int>> loaded;
extern bool capturing;
extern cudaStreamCaptureMode capture_mode;
// Of the device: 0 multiprocessors take no cooperative launch.
extern int processors, blocks_each;
int primary_context_state(int device, unsigned* flags, int* active);

template <class T>
SB_UNWATCHED T from_lane(const unsigned char* slots, unsigned from) {
  T value;
  std::memcpy(&value, slots + from * kSlot, sizeof(T));
  return value;
}

template <class... P, size_t... I>
SB_UNWATCHED void call(void (*kernel)(P...), void** args, std::index_sequence<I...>) {
  kernel(*static_cast<std::remove_reference_t<P>*>(args[I])...);
}

}  // namespace cuda_emulation

namespace cuda_emulation {

template <class... P>
cudaError_t launch(void (*kernel)(P...), dim3 grid, dim3 block, void** args, bool at_once) {
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  if (threads == 0 || threads > 1024 || grid.x == 0 || grid.y == 0 || grid.z == 0 ||
      grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) {
    return last_error = cudaErrorInvalidConfiguration;
  }
  const uint64_t resident = static_cast<uint64_t>(processors) * static_cast<uint64_t>(blocks_each);
  if (at_once && uint64_t{grid.x} * grid.y * grid.z > resident) {
    return last_error = cudaErrorCooperativeLaunchTooLarge;
  }
  const auto one = std::make_pair(reinterpret_cast<const void*>(kernel), device);
  if (capturing && loaded.count(one) == 0) return last_error = cudaErrorStreamCaptureUnsupported;
  loaded.insert(one);
  run(
      grid, block, [&] { call(kernel, args, std::index_sequence_for<P...>{}); },
      reinterpret_cast<const void*>(kernel), at_once);
  return cudaSuccess;
}

}  // namespace cuda_emulation

template <class... P>
cudaError_t cudaLaunchKernel(void (*kernel)(P...), dim3 grid, dim3 block, void** args,
                             size_t /*shared*/, cudaStream_t /*stream*/) {
  return cuda_emulation::launch(kernel, grid, block, args, false);
}
template <class... P>
cudaError_t cudaLaunchCooperativeKernel(void (*kernel)(P...), dim3 grid, dim3 block, void** args,
                                        size_t /*shared*/, cudaStream_t /*stream*/) {
  return cuda_emulation::launch(kernel, grid, block, args, true);
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int /*device*/) {
  const int processors = cuda_emulation::processors;
  *value = attribute == cudaDevAttrCooperativeLaunch ? processors > 0 : processors;
  return cudaSuccess;
}
inline cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks,
                                                                 const void* /*kernel*/,
                                                                 int /*threads*/,
                                                                 size_t /*shared*/) {
  *blocks = cuda_emulation::blocks_each;
  return cudaSuccess;
}

inline cudaError_t cudaGetLastError() {
  return std::exchange(cuda_emulation::last_error, cudaSuccess);
}
inline const char* cudaGetErrorString(cudaError_t e) {
  if (e == cudaErrorStreamCaptureUnsupported)
    return "operation not permitted when stream is capturing";
  if (e == cudaErrorCooperativeLaunchTooLarge) return "too many blocks in cooperative launch";
  return e == cudaSuccess ? "no error" : "invalid configuration argument";
}
inline cudaError_t cudaGetDevice(int* device) {
  *device = cuda_emulation::device;
  return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int device) {
  cuda_emulation::device = device;
  cuda_emulation::contexts.insert(device);  // since CUDA 12
  return cudaSuccess;
}
inline cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  std::swap(*mode, cuda_emulation::capture_mode);
  return cudaSuccess;
}
inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, const void* kernel) {
  if (cuda_emulation::capturing && cuda_emulation::capture_mode != cudaStreamCaptureModeRelaxed) {
    return cuda_emulation::last_error = cudaErrorStreamCaptureUnsupported;
  }
  cuda_emulation::loaded.emplace(kernel, cuda_emulation::device);
  return cudaSuccess;
}
inline cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned,
                                                    unsigned long long,
                                                    cudaDriverEntryPointQueryResult* result) {
  const bool known = std::strcmp(name, "cuDevicePrimaryCtxGetState") == 0;
  *function = known ? reinterpret_cast<void*>(&cuda_emulation::primary_context_state) : nullptr;
  *result = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}

inline void __syncthreads(int line = __builtin_LINE()) { cuda_emulation::sync_block(line); }
inline void __threadfence() { cuda_emulation::fence(); }
inline void __nanosleep(unsigned) { cuda_emulation::nap(); }

inline void __syncwarp(unsigned mask = 0xffffffffu, int line = __builtin_LINE()) {
  const char nothing = 0;
  cuda_emulation::exchange(cuda_emulation::Wait::kSyncWarp, line, &nothing, 1, mask);
}

template <class T>
T __shfl_sync(unsigned mask, T value, int from, int width = 32, int line = __builtin_LINE()) {
  const auto* slots =
      cuda_emulation::exchange(cuda_emulation::Wait::kShuffle, line, &value, sizeof(T), mask);
  const unsigned base = cuda_emulation::lane() / width * width;
  return cuda_emulation::from_lane<T>(slots, base + static_cast<unsigned>(from) % width);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, int line = __builtin_LINE()) {
  const auto* slots =
      cuda_emulation::exchange(cuda_emulation::Wait::kShuffle, line, &value, sizeof(T), mask);
  const unsigned me = cuda_emulation::lane(), from = me ^ static_cast<unsigned>(bits);
  return cuda_emulation::from_lane<T>(slots, from / width > me / width ? me : from);
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32, int line = __builtin_LINE()) {
  const auto* slots =
      cuda_emulation::exchange(cuda_emulation::Wait::kShuffle, line, &value, sizeof(T), mask);
  const unsigned me = cuda_emulation::lane();
  return cuda_emulation::from_lane<T>(slots, me % width < by ? me : me - by);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
  const auto* slots = cuda_emulation::exchange(cuda_emulation::Wait::kVote, line, &predicate,
                                               sizeof(predicate), mask);
  unsigned votes = 0;
  for (unsigned i = 0; i < 32; ++i) {
    votes |= static_cast<unsigned>(cuda_emulation::from_lane<int>(slots, i) != 0) << i;
  }
  return votes;
}

inline int __ffs(int value) { return __builtin_ffs(value); }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }

// Fibers change only at barriers and exchanges, so these are atomic as they stand.
template <class T>
SB_UNWATCHED T atomicAdd(T* at, T value) {
  cuda_emulation::raises_counter();
  cuda_emulation::touches_atomically(at, sizeof(T), __builtin_return_address(0));
  const T before = *at;
  *at = before + value;
  return before;
}

template <class T>
T __ldcg(const T* at) {
  cuda_emulation::reads_of_others();
  return *at;
}

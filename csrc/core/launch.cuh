// How every launcher starts its kernel: on the caller's device and stream, refusals reported.
// No launcher allocates or waits, so all of them can be captured into a graph.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>

#ifndef SB_SHARED  // the emulation of tests/cuda_emulation brings its own
#define SB_SHARED(type, name, count) __shared__ type name[count]
#endif

namespace semobridge {

inline void check_cuda(const char* op, const char* what, cudaError_t status) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // forgets it: PyTorch's next check would report it as its own
  throw std::runtime_error(std::string(op) + ": " + what +
                           " failed: " + cudaGetErrorString(status));
}

// Whether the process has a context on the device: the driver knows, and a build need not have it.
inline bool has_context(int device) {
  using State = int (*)(int, unsigned*, int*);
  static const State state = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result;
    const char* const name = "cuDevicePrimaryCtxGetState";
#if CUDART_VERSION >= 12050
    const auto status =
        cudaGetDriverEntryPointByVersion(name, &found, 7000, cudaEnableDefault, &result);
#else
    const auto status = cudaGetDriverEntryPoint(name, &found, cudaEnableDefault, &result);
#endif
    if (status != cudaSuccess || result != cudaDriverEntryPointSuccess) found = nullptr;
    return reinterpret_cast<State>(found);
  }();
  unsigned flags = 0;
  int active = 0;
  return state == nullptr || state(device, &flags, &active) != 0 || active != 0;
}

// Makes `device` current where it is not, and gives the caller's back if that was ever used: since
// CUDA 12 cudaSetDevice makes a context, hundreds of megabytes, on a device that has none. PyTorch
// does the same, and remembers the caller's device itself (semobridge_ext/runtime/views.py).
class DeviceGuard {
 public:
  DeviceGuard(const char* op, int device) {
    check_cuda(op, "cudaGetDevice", cudaGetDevice(&before_));
    if (before_ == device) return;
    check_cuda(op, "cudaSetDevice", cudaSetDevice(device));
    changed_ = true;
  }
  ~DeviceGuard() {
    if (changed_ && has_context(before_)) cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

// CUDA loads a kernel at its first launch, unless told otherwise. While a stream is captured that
// may be refused, and end the capture: it is loaded before, once a device, in the mode in which
// this thread's calls disturb no capture.
inline void load_once(const char* op, const void* kernel, int device) {
  static std::mutex mutex;
  static std::set<std::pair<const void*, int>> loaded;
  const std::lock_guard<std::mutex> lock(mutex);
  if (loaded.count({kernel, device}) != 0) return;
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  check_cuda(op, "cudaThreadExchangeStreamCaptureMode", cudaThreadExchangeStreamCaptureMode(&mode));
  cudaFuncAttributes attributes;
  const cudaError_t status = cudaFuncGetAttributes(&attributes, kernel);
  cudaThreadExchangeStreamCaptureMode(&mode);
  check_cuda(op, "load", status);
  loaded.emplace(kernel, device);
}

template <class... P, size_t... I>
cudaError_t launch_with(void (*kernel)(P...), dim3 grid, dim3 block, cudaStream_t stream,
                        std::tuple<P...>& values, std::index_sequence<I...>) {
  void* args[] = {&std::get<I>(values)...};
  return cudaLaunchKernel(kernel, grid, block, args, 0, stream);
}

template <class... P, class... A>
void launch(const char* op, void (*kernel)(P...), dim3 grid, dim3 block, int device, void* stream,
            A&&... args) {
  const DeviceGuard guard(op, device);
  load_once(op, reinterpret_cast<const void*>(kernel), device);
  std::tuple<P...> values(static_cast<P>(args)...);
  check_cuda(op, "launch",
             launch_with(kernel, grid, block, static_cast<cudaStream_t>(stream), values,
                         std::index_sequence_for<P...>{}));
}

// Blocks of a cooperative launch that the device holds at once; 0: it takes none.
inline int resident_blocks(const char* op, const void* kernel, int threads, int device) {
  const DeviceGuard guard(op, device);
  int cooperative = 0, processors = 0, each = 0;
  check_cuda(op, "cudaDeviceGetAttribute",
             cudaDeviceGetAttribute(&cooperative, cudaDevAttrCooperativeLaunch, device));
  if (cooperative == 0) return 0;
  check_cuda(op, "cudaDeviceGetAttribute",
             cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device));
  load_once(op, kernel, device);
  check_cuda(op, "cudaOccupancyMaxActiveBlocksPerMultiprocessor",
             cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, threads, 0));
  return each * processors;
}

// All blocks run at once, or the launch is refused: they may wait for each other.
template <class... P, size_t... I>
cudaError_t launch_at_once_with(void (*kernel)(P...), dim3 grid, dim3 block, cudaStream_t stream,
                                std::tuple<P...>& values, std::index_sequence<I...>) {
  void* args[] = {&std::get<I>(values)...};
  return cudaLaunchCooperativeKernel(kernel, grid, block, args, 0, stream);
}

template <class... P, class... A>
void launch_at_once(const char* op, void (*kernel)(P...), dim3 grid, dim3 block, int device,
                    void* stream, A&&... args) {
  const DeviceGuard guard(op, device);
  load_once(op, reinterpret_cast<const void*>(kernel), device);
  std::tuple<P...> values(static_cast<P>(args)...);
  check_cuda(op, "cooperative launch",
             launch_at_once_with(kernel, grid, block, static_cast<cudaStream_t>(stream), values,
                                 std::index_sequence_for<P...>{}));
}

// Blocks of `each` items; the grid's first axis holds 2³¹ − 1.
inline unsigned blocks_for(const char* op, int64_t items, int64_t each) {
  const int64_t blocks = (items + each - 1) / each;
  if (blocks > 0x7fffffff) throw std::invalid_argument(std::string(op) + ": too many rows");
  return static_cast<unsigned>(blocks);
}

}  // namespace semobridge

// How every launcher starts its kernel: on the caller's device and stream, refusals reported.
// No launcher allocates or waits, so all of them can be captured into a graph.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>
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
  throw std::runtime_error(std::string(op) + ": " + what +
                           " failed: " + cudaGetErrorString(status));
}

// Makes `device` current and gives the caller's back.
class DeviceGuard {
 public:
  DeviceGuard(const char* op, int device) {
    check_cuda(op, "cudaGetDevice", cudaGetDevice(&before_));
    if (before_ == device) return;
    check_cuda(op, "cudaSetDevice", cudaSetDevice(device));
    changed_ = true;
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

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
  std::tuple<P...> values(static_cast<P>(args)...);
  check_cuda(op, "launch",
             launch_with(kernel, grid, block, static_cast<cudaStream_t>(stream), values,
                         std::index_sequence_for<P...>{}));
}

// Blocks of `each` items; the grid's first axis holds 2³¹ − 1.
inline unsigned blocks_for(const char* op, int64_t items, int64_t each) {
  const int64_t blocks = (items + each - 1) / each;
  if (blocks > 0x7fffffff) throw std::invalid_argument(std::string(op) + ": too many rows");
  return static_cast<unsigned>(blocks);
}

}  // namespace semobridge

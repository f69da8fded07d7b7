// One warp per row: coalesced reads, the sum of squares reduced by shuffles, a second read from
// cache. Rows are 2-5 KiB, so that pass hits L1, and nothing needs shared memory or a block-wide
// barrier.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <semobridge/normalize_rows.h>

#include <stdexcept>
#include <string>

namespace semobridge {
namespace {

constexpr int kWarp = 32;
constexpr int kWarpsPerBlock = 8;

template <class T>
__device__ __forceinline__ T warp_sum(T value) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, offset);
  }
  return value;
}

template <class T>
__device__ __forceinline__ T warp_max(T value) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    const T other = __shfl_xor_sync(0xffffffffu, value, offset);
    value = other > value ? other : value;
  }
  return value;
}

template <class Out, class T>
__device__ __forceinline__ Out to_out(T value) {
  return static_cast<Out>(value);
}
template <>
__device__ __forceinline__ __half to_out<__half, float>(float value) {
  return __float2half_rn(value);
}
template <>
__device__ __forceinline__ __nv_bfloat16 to_out<__nv_bfloat16, float>(float value) {
  return __float2bfloat16_rn(value);
}

template <class T, class Out>
__global__ void __launch_bounds__(kWarp* kWarpsPerBlock)
    normalize_rows_fwd_kernel(const T* __restrict__ x, int64_t x_stride, const T* __restrict__ bias,
                              int64_t bias_stride, bool normalize, T scale, Out* __restrict__ out,
                              int64_t out_stride, T* __restrict__ norms, int64_t rows,
                              int64_t cols) {
  const int lane = threadIdx.x % kWarp;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + threadIdx.x / kWarp;
  if (row >= rows) return;
  const T* source = x + row * x_stride;
  const T* offset = bias == nullptr ? nullptr : bias + row * bias_stride;
  T factor = scale;
  if (normalize) {
    // Divided by the largest entry first: squares of large features overflow before the norm does.
    T largest = 0;
    for (int64_t i = lane; i < cols; i += kWarp) {
      const T value = source[i] + (offset == nullptr ? T(0) : offset[i]);
      const T magnitude = value < 0 ? -value : value;
      largest = magnitude > largest ? magnitude : largest;
    }
    largest = warp_max(largest);
    T squares = 0;
    for (int64_t i = lane; i < cols; i += kWarp) {
      const T value =
          (source[i] + (offset == nullptr ? T(0) : offset[i])) / (largest > 0 ? largest : T(1));
      squares += value * value;
    }
    squares = warp_sum(squares);
    const T norm = sqrt(squares) * (largest > 0 ? largest : T(1));
    factor = squares == 0 ? T(0) : scale / norm;  // a NaN anywhere makes the row NaN
    if (norms != nullptr && lane == 0) norms[row] = norm;
  }
  Out* target = out + row * out_stride;
  for (int64_t i = lane; i < cols; i += kWarp) {
    const T value = source[i] + (offset == nullptr ? T(0) : offset[i]);
    target[i] = to_out<Out, T>(value * factor);
  }
}

template <class T, class Out>
void launch(const NormalizeRowsArgs& a, cudaStream_t stream) {
  const int64_t blocks = (a.x.rows + kWarpsPerBlock - 1) / kWarpsPerBlock;
  normalize_rows_fwd_kernel<T, Out>
      <<<static_cast<unsigned>(blocks), kWarp * kWarpsPerBlock, 0, stream>>>(
          static_cast<const T*>(a.x.data), a.x.row_stride, static_cast<const T*>(a.bias.data),
          a.bias.row_stride, a.normalize, static_cast<T>(a.scale), static_cast<Out*>(a.out.data),
          a.out.row_stride, static_cast<T*>(a.norms), a.x.rows, a.x.cols);
}

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  throw std::runtime_error(std::string("normalize_rows: ") + what +
                           " failed: " + cudaGetErrorString(status));
}

}  // namespace

void normalize_rows_cuda(const NormalizeRowsArgs& a, int device, void* stream) {
  if (a.x.rows == 0 || a.x.cols == 0) return;
  int before = 0;
  check(cudaGetDevice(&before), "cudaGetDevice");
  if (before != device) check(cudaSetDevice(device), "cudaSetDevice");
  const auto s = static_cast<cudaStream_t>(stream);
  if (a.x.dtype == DType::kFloat64) {
    launch<double, double>(a, s);
  } else if (a.out.dtype == DType::kFloat16) {
    launch<float, __half>(a, s);
  } else if (a.out.dtype == DType::kBFloat16) {
    launch<float, __nv_bfloat16>(a, s);
  } else {
    launch<float, float>(a, s);
  }
  const cudaError_t launched = cudaGetLastError();
  if (before != device) check(cudaSetDevice(before), "cudaSetDevice");
  check(launched, "launch");
}

}  // namespace semobridge

// nvcuda::wmma of the emulation: fragments of 16×16 sums, operands of either order, float32
// accumulation.
//
// Which lane holds which element is unspecified on a GPU, so a fragment has no elements to touch:
// every lane keeps the whole operand as it found it, and stores its own eight of the 256 sums. All
// lanes of a warp must come with the same address. What hardware refuses or leaves undefined ends
// the launch: an address off a 32-byte boundary, an odd leading dimension, operands that were not
// rounded to TF32.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

namespace nvcuda::wmma {

struct matrix_a;
struct matrix_b;
struct accumulator;
struct row_major;
struct col_major;
enum layout_t { mem_row_major };

namespace precision {
struct tf32;
}

inline float __float_to_tf32(float x) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  if ((u & 0x7f800000u) == 0x7f800000u) return x;
  u = (u + 0x1000u) & 0xffffe000u;  // to nearest, ties away from zero
  std::memcpy(&x, &u, 4);
  return x;
}

inline float widened(float x) { return x; }
inline float widened(__half x) { return __half2float(x); }
inline float widened(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class T>
struct StoredAs {
  using type = T;
};
template <>
struct StoredAs<precision::tf32> {
  using type = float;
};

template <class Use, int kM, int kN, int kK, class T, class Layout = void>
struct fragment {
  static constexpr int kRows = std::is_same_v<Use, matrix_b> ? kK : kM;
  static constexpr int kCols = std::is_same_v<Use, matrix_a> ? kK : kN;
  float value[kRows][kCols];
};

struct Collective {
  const void* address;
  unsigned stride;
};

// All lanes wait for each other and must want the same.
inline void together(const void* address, unsigned stride, size_t size, int line) {
  const Collective mine{address, stride};
  const auto* slots = cuda_emulation::exchange(cuda_emulation::Wait::kMatrix, line, &mine,
                                               sizeof(mine), 0xffffffffu);
  for (unsigned i = 0; i < 32; ++i) {
    const auto other = cuda_emulation::from_lane<Collective>(slots, i);
    if (other.address != address || other.stride != stride) {
      cuda_emulation::refuse("the lanes of a warp name different matrices");
    }
  }
  if (reinterpret_cast<uintptr_t>(address) % 32 != 0) {
    cuda_emulation::refuse("a matrix of wmma must lie on a 32-byte boundary");
  }
  if (stride * size % 16 != 0) {
    cuda_emulation::refuse("the leading dimension of a wmma matrix must be whole 16 bytes");
  }
}

template <class Use, int kM, int kN, int kK, class T, class Layout>
void fill_fragment(fragment<Use, kM, kN, kK, T, Layout>& f, float value) {
  for (auto& row : f.value) {
    for (float& v : row) v = value;
  }
}

template <class Use, int kM, int kN, int kK, class T, class Layout>
void load_matrix_sync(fragment<Use, kM, kN, kK, T, Layout>& f,
                      const typename StoredAs<T>::type* from, unsigned stride,
                      int line = __builtin_LINE()) {
  together(from, stride, sizeof(*from), line);
  using F = fragment<Use, kM, kN, kK, T, Layout>;
  for (int r = 0; r < F::kRows; ++r) {
    for (int c = 0; c < F::kCols; ++c) {
      const bool by_rows = std::is_same_v<Layout, row_major>;
      f.value[r][c] = widened(by_rows ? from[r * stride + c] : from[c * stride + r]);
      if (std::is_same_v<T, precision::tf32> && f.value[r][c] == f.value[r][c] &&
          __float_to_tf32(f.value[r][c]) != f.value[r][c]) {
        cuda_emulation::refuse("an operand was not rounded to TF32");
      }
    }
  }
}

// Each lane adds up the sums that it will store.
template <int kM, int kN, int kK, class T, class Layout>
void mma_sync(fragment<accumulator, kM, kN, kK, float>& d,
              const fragment<matrix_a, kM, kN, kK, T, row_major>& a,
              const fragment<matrix_b, kM, kN, kK, T, Layout>& b,
              const fragment<accumulator, kM, kN, kK, float>& c, int line = __builtin_LINE()) {
  together(nullptr, 0, 1, line);
  for (unsigned at = cuda_emulation::lane(); at < kM * kN; at += 32) {
    const unsigned i = at / kN, j = at % kN;
    float sum = c.value[i][j];
    for (int k = 0; k < kK; ++k) sum += a.value[i][k] * b.value[k][j];
    d.value[i][j] = sum;
  }
}

template <int kM, int kN, int kK>
void store_matrix_sync(float* to, const fragment<accumulator, kM, kN, kK, float>& f,
                       unsigned stride, layout_t, int line = __builtin_LINE()) {
  together(to, stride, sizeof(float), line);
  for (unsigned i = cuda_emulation::lane(); i < kM * kN; i += 32) {
    to[i / kN * stride + i % kN] = f.value[i / kN][i % kN];
  }
}

}  // namespace nvcuda::wmma

// Plain views: what crosses into the core. No torch, no Python, no ownership.
#pragma once
#include <cstdint>

namespace semobridge {

enum class DType : int32_t { kFloat32 = 0, kFloat64 = 1, kFloat16 = 2, kBFloat16 = 3 };

constexpr int64_t dtype_size(DType t) {
  return t == DType::kFloat64 ? 8 : t == DType::kFloat32 ? 4 : 2;
}

// Of sums over operands of these types.
constexpr DType compute_dtype(DType a, DType b) {
  return a == DType::kFloat64 || b == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
}
constexpr DType compute_dtype(DType a) { return compute_dtype(a, a); }
constexpr bool is_compute_dtype(DType a) { return compute_dtype(a) == a; }

// Row-major matrix with unit column stride; row_stride counts elements and may be 0 (a broadcast
// row) or larger than cols (a slice).
struct ConstMatrix {
  const void* data = nullptr;
  DType dtype = DType::kFloat32;
  int64_t rows = 0, cols = 0, row_stride = 0;
};

struct Matrix {
  void* data = nullptr;
  DType dtype = DType::kFloat32;
  int64_t rows = 0, cols = 0, row_stride = 0;
};

// A [K, M] right operand laid out for the tile product: ceil(M / kPanel) panels, each [K, kPanel],
// columns past M zero. float32 or float64 (the compute type). 64-byte aligned.
constexpr int64_t kPanel = 32;

struct PackedMatrix {
  const void* data = nullptr;
  DType dtype = DType::kFloat32;
  int64_t rows = 0, cols = 0;  // [K, M] before packing
};

constexpr int64_t panels_of(int64_t cols) { return (cols + kPanel - 1) / kPanel; }
constexpr int64_t packed_elements(int64_t rows, int64_t cols) {
  return rows * panels_of(cols) * kPanel;
}

}  // namespace semobridge

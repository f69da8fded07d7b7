"""How to break the pieces of tower_descent: file, text, what stands there instead, cases, order."""

from __future__ import annotations

TOWER_MUTATIONS = {
    "warp sum over half a warp": (
        "core/device.cuh",
        "__device__ __forceinline__ T warp_sum(T value) {\n  for (int offset = kWarp / 2;",
        "__device__ __forceinline__ T warp_sum(T value) {\n  for (int offset = kWarp / 4;",
        "layer_norm",
        "ascending",
    ),
    "vectors without a check of alignment": (
        "core/device.cuh",
        "return is_aligned(data) && cols % lanes == 0 && row_stride % lanes == 0;",
        "return cols > 0 && lanes > 0 && row_stride > 0;",
        "layer_norm",
        "ascending",
    ),
    "layer_norm: row count off by one": (
        "tower_descent/cuda_layer_norm.cu",
        "layer_norm_fwd_kernel<T, kStep>, blocks_for(kOp, a.x.rows,",
        "layer_norm_fwd_kernel<T, kStep>, blocks_for(kOp, a.x.rows - 1,",
        "layer_norm",
        "ascending",
    ),
    "layer_norm: one row too many": (
        "tower_descent/cuda_layer_norm.cuh",
        "if (row >= rows) return;\n  const int64_t begin = threadIdx.x % kWarp * kStep;\n"
        "  const T* source = x + row * x_stride;\n  float sum = 0,",
        "if (row > rows) return;\n  const int64_t begin = threadIdx.x % kWarp * kStep;\n"
        "  const T* source = x + row * x_stride;\n  float sum = 0,",
        "layer_norm",
        "ascending",
    ),
    "layer_norm: gradient forgets the mean": (
        "tower_descent/cuda_layer_norm.cuh",
        "(u[j] * w[j] - mean_u - (",
        "(u[j] * w[j] - (",
        "layer_norm",
        "ascending",
    ),
    "layer_norm: rows normed without their residual sum": (
        "tower_descent/cuda_layer_norm.cuh",
        "source = total + row * total_stride;  // each lane reads",
        "// each lane reads",
        "layer_norm",
        "ascending",
    ),
    "layer_norm: residual sum without the delta": (
        "tower_descent/cuda_layer_norm.cuh",
        "value[j] += other[j];",
        "value[j] += 0 * other[j];",
        "layer_norm",
        "ascending",
    ),
    "activate: last pack skipped": (
        "tower_descent/cuda_activation.cu",
        "if (i >= rows * packs) return;\n  const int64_t row = i / packs, col = i % packs * kStep;\n"
        "  float h[kStep];",
        "if (i + 1 >= rows * packs) return;\n  const int64_t row = i / packs, col = i % packs * kStep;\n"
        "  float h[kStep];",
        "activation",
        "ascending",
    ),
    "activate: last pack of the gradient skipped": (
        "tower_descent/cuda_activation.cu",
        "if (i >= rows * packs) return;\n  const int64_t row = i / packs, col = i % packs * kStep;\n"
        "  float h[kStep], g[kStep];",
        "if (i + 1 >= rows * packs) return;\n  const int64_t row = i / packs, col = i % packs * kStep;\n"
        "  float h[kStep], g[kStep];",
        "activation",
        "ascending",
    ),
    "activate: sign of the slope's bend": (
        "tower_descent/cuda_activation.cuh",
        "+ h * kInverseSqrt2Pi",
        "- h * kInverseSqrt2Pi",
        "activation",
        "ascending",
    ),
    "activate: slope of the value instead of the argument": (
        "tower_descent/cuda_activation.cu",
        "g[j] *= activation_slope<kKind>(h[j]);",
        "g[j] *= activation_slope<kKind>(activated<kKind>(h[j]));",
        "activation",
        "ascending",
    ),
    "cosine_loss: gradient not scaled by the norm": (
        "tower_descent/cuda_descend.cuh",
        "const float factor = grad_scale * inverse;",
        "const float factor = grad_scale;",
        "cosine_loss",
        "ascending",
    ),
    "adamw: decay forgotten": (
        "tower_descent/cuda_descend.cuh",
        "1 - a.lr * a.weight_decay",
        "1",
        "adamw",
        "ascending",
    ),
    "adamw: gradient of the last slot skipped": (
        "tower_descent/cuda_descend.cuh",
        "for (int64_t slot = 0; slot < slots; ++slot) {\n    if (source[slot] == r) g +=",
        "for (int64_t slot = 0; slot + 1 < slots; ++slot) {\n    if (source[slot] == r) g +=",
        "adamw",
        "ascending",
    ),
    "adamw: step not counted": (
        "tower_descent/cuda_descend.cuh",
        "*step = now + 1;",
        "*step = now;",
        "adamw",
        "ascending",
    ),
    "adamw: scale of the gradient left in": (
        "tower_descent/cuda_descend.cuh",
        "g *= grad_factor;",
        ";",
        "adamw",
        "ascending",
    ),
    "adamw: constants of the first sample for all": (
        "tower_descent/cuda_descend.cuh",
        "(base_samples == 1 ? 0 : s)",
        "(base_samples == 1 ? 0 : s * 0)",
        "adamw",
        "ascending",
    ),
}

"""How to break the blend of logits: file, text, what stands there instead, cases, order."""

from __future__ import annotations

BLEND_MUTATIONS = {
    "blend: partial sums read without a barrier": (
        "core/device.cuh",
        "partial[threadIdx.x / kWarp] = value;\n  __syncthreads();",
        "partial[threadIdx.x / kWarp] = value;",
        "blend_logits",
        "ascending",
    ),
    "blend: partial sums overwritten too early": (
        "core/device.cuh",
        "__syncthreads();  // the last use of `partial` is over",
        ";",
        "blend_logits",
        "shuffled",
    ),
    "blend: the higher class wins a tie": (
        "blend_logits/cuda.cu",
        "(a == b && at < other)",
        "(a == b && at > other)",
        "blend_logits",
        "ascending",
    ),
    "blend: best of half a warp": (
        "blend_logits/cuda.cu",
        "if (labels == nullptr) return;\n  for (int offset = kWarp / 2;",
        "if (labels == nullptr) return;\n  for (int offset = kWarp / 4;",
        "blend_logits",
        "ascending",
    ),
    "blend: the first class of a pack for all": (
        "blend_logits/cuda.cu",
        "best_at = c + j;",
        "best_at = c;",
        "blend_logits",
        "ascending",
    ),
    "blend: all warps of a block have its first row": (
        "blend_logits/cuda.cu",
        "(kThreads / kTeam) + threadIdx.x / kTeam",
        "(kThreads / kTeam) + threadIdx.x / kThreads",
        "blend_logits",
        "ascending",
    ),
    "blend: a row past the last": (
        "blend_logits/cuda.cu",
        "if (row >= rows) return;",
        "if (row > rows) return;",
        "blend_logits",
        "ascending",
    ),
    "blend: the last values that a lane keeps are forgotten": (
        "blend_logits/cuda.cu",
        "k < kPacks; ++k) squares",
        "k + 1 < kPacks; ++k) squares",
        "blend_logits",
        "ascending",
    ),
    "blend: values beyond those that a lane keeps are skipped": (
        "blend_logits/cuda.cu",
        "load(row + i, value);\n    squares = add_squares",
        "load(row + i, value);\n    if (n > 4 * kTeam * kAll) squares = add_squares",
        "blend_logits",
        "ascending",
    ),
    "blend: a block's largest read without a barrier": (
        "blend_logits/cuda.cu",
        "partial[threadIdx.x / kWarp] = value;\n    __syncthreads();",
        "partial[threadIdx.x / kWarp] = value;",
        "blend_logits",
        "ascending",
    ),
    "blend: vectors of a rank that has a rest": (
        "blend_logits/cuda.cu",
        "a.rank % kVector<float> == 0 &&",
        "",
        "blend_logits",
        "ascending",
    ),
    "blend: vectors of lines off their boundary": (
        "blend_logits/cuda.cu",
        "rows_aligned(a.z.data, a.z.dtype, a.classes, a.z.row_stride) &&",
        "",
        "blend_logits",
        "ascending",
    ),
}

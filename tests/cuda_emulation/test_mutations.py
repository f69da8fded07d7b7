"""CUDA kernels broken on purpose must turn the emulated run red.

Each mutation replaces one exact piece of source text, which must exist once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.cuda_emulation.build import Emulation, kernel_sources, run_cases
from tests.cuda_emulation.mutations_few_rows import FEW_ROWS_MUTATIONS
from tests.cuda_emulation.mutations_step import STEP_MUTATIONS
from tests.cuda_emulation.mutations_train import TRAIN_MUTATIONS
from tests.cuda_emulation.order_sites import CSRC, bare, compiled, count_of, sites, stem_of
from tests.support.own_kernels import tables

# name: file, text, what stands there instead, cases, order
MUTATIONS = {
    "project: ticket taken before the sums are written": (
        "core/last_block.cuh",
        "visible to every block that sees its ticket\n  __syncthreads();",
        "visible to every block that sees its ticket",
        "project_normalize",
        "shuffled",
    ),
    "project: sums not fenced before the ticket": (
        "core/last_block.cuh",
        "__threadfence();  // this thread's sums are visible to every block that sees its ticket",
        "",
        "project_normalize",
        "ascending",
    ),
    "project: sums of others read without a fence": (
        "core/last_block.cuh",
        "if (is_last[0] != 1) return;\n  __threadfence();",
        "if (is_last[0] != 1) return;",
        "project_normalize",
        "ascending",
    ),
    "project: flag read without a barrier": (
        "core/last_block.cuh",
        "static_cast<int>(gridDim.x) - 1;\n  }\n  __syncthreads();",
        "static_cast<int>(gridDim.x) - 1;\n  }",
        "project_normalize",
        "descending",
    ),
    "project: barrier in half of the block": (
        "core/last_block.cuh",
        "static_cast<int>(gridDim.x) - 1;\n  }\n  __syncthreads();",
        "static_cast<int>(gridDim.x) - 1;\n  }\n  if (threadIdx.x < 64) __syncthreads();",
        "project_normalize",
        "ascending",
    ),
    "project: tickets not given back": (
        "core/last_block.cuh",
        "tickets[blockIdx.y] = 0;",
        ";",
        "project_normalize",
        "ascending",
    ),
    "project: last row of a block skipped": (
        "core/last_block.cuh",
        "r < rows; r += warps",
        "r + 1 < rows; r += warps",
        "project_normalize",
        "ascending",
    ),
    "project: one column too many": (
        "project_normalize/cuda.cu",
        "if (col < cols) {",
        "if (col <= cols) {",
        "project_normalize",
        "ascending",
    ),
    "project: tail of the sum skipped": (
        "project_normalize/cuda.cu",
        "i = lane * kStep; i < k; i",
        "i = lane * kStep; i < k - k % kWarp; i",
        "project_normalize",
        "ascending",
    ),
    "warp sum over half a warp": (
        "core/device.cuh",
        "__device__ __forceinline__ T warp_sum(T value) {\n  for (int offset = kWarp / 2;",
        "__device__ __forceinline__ T warp_sum(T value) {\n  for (int offset = kWarp / 4;",
        "layer_norm",
        "ascending",
    ),
    "warp maximum over half a warp": (
        "core/device.cuh",
        "__device__ __forceinline__ T warp_max(T value) {\n  for (int offset = kWarp / 2;",
        "__device__ __forceinline__ T warp_max(T value) {\n  for (int offset = kWarp / 4;",
        "normalize_rows",
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
    "normalize_rows: stride of the output ignored": (
        "project_normalize/cuda_normalize_rows.cu",
        "Out* target = out + row * out_stride;",
        "Out* target = out + row * cols;",
        "normalize_rows",
        "ascending",
    ),
    "normalize_rows: second part of the product forgotten": (
        "project_normalize/cuda_normalize_rows.cu",
        "to[j] += second.at[j];",
        "to[j] += 0 * second.at[j];",
        "normalize_rows",
        "ascending",
    ),
    "normalize_rows: second part read from the first": (
        "project_normalize/cuda_normalize_rows.cu",
        "(row + cols + i);",
        "(row + i);",
        "normalize_rows",
        "ascending",
    ),
    "normalize_rows: bias forgotten": (
        "project_normalize/cuda_normalize_rows.cu",
        "to[j] += offset.at[j];",
        "to[j] += 0 * offset.at[j];",
        "normalize_rows",
        "ascending",
    ),
    "normalize_rows: vectors without a check of the output": (
        "project_normalize/cuda_normalize_rows.cu",
        "rows_aligned(a.out.data, a.out.dtype, cols, a.out.row_stride) &&",
        "a.out.cols > 0 &&",
        "normalize_rows",
        "ascending",
    ),
    "normalize_rows: vectors without a check of the bias": (
        "project_normalize/cuda_normalize_rows.cu",
        "(a.bias.data == nullptr || rows_aligned",
        "(a.bias.rows >= 0 || rows_aligned",
        "normalize_rows",
        "ascending",
    ),
    "normalize_rows: squares of large entries overflow": (
        "project_normalize/cuda_normalize_rows.cu",
        "const T divisor = largest > 0 ? largest : T(1);",
        "const T divisor = largest > 0 ? T(1) : T(1);",
        "normalize_rows",
        "ascending",
    ),
    "normalize_rows: one row too many": (
        "project_normalize/cuda_normalize_rows.cu",
        "if (row >= rows) return;",
        "if (row > rows) return;",
        "normalize_rows",
        "ascending",
    ),
    "normalize_rows: two parts of another width accepted": (
        "project_normalize/cuda_normalize_rows.cu",
        "a.x.cols != 2 * a.out.cols",
        "a.x.cols < a.out.cols",
        "normalize_rows",
        "ascending",
    ),
    "scale_rows: stride of the output ignored": (
        "project_normalize/cuda_scale_rows.cu",
        "__half* target = out + row * out_stride;",
        "__half* target = out + row * cols;",
        "scale_rows",
        "ascending",
    ),
    "scale_rows: one row too many": (
        "project_normalize/cuda_scale_rows.cu",
        "if (row >= rows) return;",
        "if (row > rows) return;",
        "scale_rows",
        "ascending",
    ),
    "scale_rows: a power of two too high": (
        "project_normalize/cuda_scale_rows.cu",
        "kTop - ilogbf(largest);",
        "kTop + 2 - ilogbf(largest);",
        "scale_rows",
        "ascending",
    ),
    "scale_rows: the factor of tiny rows overflows": (
        "project_normalize/cuda_scale_rows.cu",
        "wanted < kMost ? wanted : kMost",
        "wanted",
        "scale_rows",
        "ascending",
    ),
    "scale_rows: infinity taken for a length": (
        "project_normalize/cuda_scale_rows.cu",
        "largest > 0 && largest < INFINITY",
        "largest > 0",
        "scale_rows",
        "ascending",
    ),
    "scale_rows: negative entries forgotten": (
        "project_normalize/cuda_scale_rows.cu",
        "value[j] < 0 ? -value[j] : value[j];",
        "value[j] < 0 ? 0.0f : value[j];",
        "scale_rows",
        "ascending",
    ),
    "scale_rows: vectors without a check of the output": (
        "project_normalize/cuda_scale_rows.cu",
        "rows_aligned(a.out.data, a.out.dtype, a.x.cols, a.out.row_stride);",
        "a.out.cols > 0;",
        "scale_rows",
        "ascending",
    ),
    "scale_rows: another shape accepted": (
        "project_normalize/cuda_scale_rows.cu",
        "a.x.rows != a.out.rows || a.x.cols != a.out.cols",
        "a.x.rows != a.out.rows",
        "scale_rows",
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
    "topk: last group of scores skipped": (
        "topk/cuda.cu",
        "const int64_t groups = (cols + kGroup - 1) / kGroup;",
        "const int64_t groups = cols / kGroup;",
        "topk",
        "ascending",
    ),
    "topk: vectors of a group overlap": (
        "topk/cuda.cu",
        "[static_cast<int64_t>(i) * kWarp];",
        "[static_cast<int64_t>(i / 2) * kWarp];",
        "topk",
        "ascending",
    ),
    "topk: a short group is read from its middle": (
        "topk/cuda.cu",
        "value[i] = col < cols ? from[col]",
        "value[i] = col < cols ? from[col - col % 4]",
        "topk",
        "ascending",
    ),
    "topk: a group is skipped for its last score": (
        "topk/cuda.cu",
        "for (float v : value) largest",
        "for (float v : value) largest = v, largest",
        "topk",
        "ascending",
    ),
    "topk: a level group is skipped while places are free": (
        "topk/cuda.cu",
        "beats(largest, lowest, list.worst, list.worst_row)",
        "largest > list.worst",
        "topk",
        "ascending",
    ),
    "topk: values do not move up": (
        "topk/cuda.cu",
        "value[i - 1] = value[i];",
        "value[i] = value[i];",
        "topk",
        "ascending",
    ),
    "topk: lists are read before they are written": (
        "topk/cuda.cu",
        "    __syncthreads();\n    if (warp < half)",
        "    if (warp < half)",
        "topk",
        "ascending",
    ),
    "topk: one list of a pair is lost": (
        "topk/cuda.cu",
        "if (warp >= half && warp < 2 * half)",
        "if (warp > half && warp < 2 * half)",
        "topk",
        "ascending",
    ),
    "topk: the warps of a merge share a group": (
        "topk/cuda.cu",
        "static_cast<int64_t>(warp) * kWarp, static_cast",
        "static_cast<int64_t>(warp / 2) * kWarp, static_cast",
        "topk",
        "ascending",
    ),
    "topk: carry between registers dropped": (
        "topk/cuda.cu",
        "if (lane == 0) {",
        "if (lane == 1) {",
        "topk",
        "ascending",
    ),
    "topk: the higher row wins a tie": (
        "topk/cuda.cu",
        "(left == right && row < other)",
        "(left == right && row > other)",
        "topk",
        "ascending",
    ),
    "topk: NaN beats everything": (
        "topk/cuda.cu",
        "return score == score ? score : -INFINITY;",
        "return score == score ? score : INFINITY;",
        "topk",
        "ascending",
    ),
    "topk: excluded row let in": (
        "topk/cuda.cu",
        "exclude[row] - first;",
        "exclude[row];",
        "topk",
        "ascending",
    ),
    "topk: shuffle in a divergent branch": (
        "topk/cuda.cu",
        "const bool stays = beats(score[i], row[i], s, r);",
        "const bool stays = beats(score[i], row[i], s, r);\n      if (stays) return;",
        "topk",
        "ascending",
    ),
}
MUTATIONS |= TRAIN_MUTATIONS | FEW_ROWS_MUTATIONS | STEP_MUTATIONS | tables("CUDA_MUTATIONS")


def broken(name: str, emulation: Emulation, folder: Path) -> Path:
    """The object of the one kernel whose case must notice, compiled with this piece of source broken."""
    file, text, replacement, case, _ = MUTATIONS[name]
    original = (CSRC / file).read_text()
    assert original.count(text) == 1, f"{file} holds {original.count(text)} times: {text!r}"
    # A header is compiled with the kernel whose case runs; a file finds headers beside it first.
    kernel = kernel_sources()[stem_of(case)]
    return compiled(emulation, kernel, file, original.replace(text, replacement), folder)


def names() -> list[Any]:
    """All of them in a campaign; the first of every file of cases in continuous integration."""
    first = {stem_of(case): name for name, (*_, case, _) in reversed(MUTATIONS.items())}
    return [
        name if name in first.values() else pytest.param(name, marks=pytest.mark.campaign)
        for name in MUTATIONS
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", names())
def test_mutation_is_caught(name: str, emulation: Emulation, tmp_path: Path):
    *_, case, order = MUTATIONS[name]
    mutant = broken(name, emulation, tmp_path / "source")
    module = emulation.with_one_replaced(stem_of(case), mutant, tmp_path)
    done = run_cases(module, order, case, timeout=120)
    assert done.returncode != 0, "the kernel is broken and the run is green"
    told = (done.stderr.strip().splitlines() or ["crash"])[-1]
    print(f"  {name}: {told[:120]}")


def test_what_removes_order_is_held_against_the_detector_too():
    """test_races.py removes every barrier and fence; each mutation that does so is one of those."""
    known = {(site.file, bare(site.without())) for site in sites()}
    removals = [name for name, (_, text, new, *_) in MUTATIONS.items() if count_of(new) < count_of(text)]
    assert len(removals) >= 10
    for name in removals:
        file, text, new, *_ = MUTATIONS[name]
        assert (file, bare((CSRC / file).read_text().replace(text, new))) in known, (
            f"{name}: it removes more than one statement of order; write one mutation for each"
        )

"""CUDA kernels broken on purpose must turn the emulated run red.

Each mutation replaces one exact piece of source text, which must exist once.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cuda_emulation.build import Emulation, kernel_sources, run_cases
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
    "project_tile: tile overwritten while others multiply": (
        "project_normalize/cuda_project_tile.cu",
        "    __syncthreads();  // the last tile has been multiplied\n",
        "",
        "project_tile",
        "shuffled",
    ),
    "project_tile: tile multiplied before it is complete": (
        "project_normalize/cuda_project_tile.cu",
        "__syncthreads();  // the tile is complete",
        ";",
        "project_tile",
        "shuffled",
    ),
    "project_tile: sums laid over a tile in use": (
        "project_normalize/cuda_project_tile.cu",
        "__syncthreads();  // the last tile has been multiplied; the sums take its place",
        ";",
        "project_tile",
        "shuffled",
    ),
    "project_tile: sums read before they are complete": (
        "project_normalize/cuda_project_tile.cu",
        "__syncthreads();  // the sums are complete",
        ";",
        "project_tile",
        "descending",
    ),
    "project_tile: second part of the matrix forgotten": (
        "project_normalize/cuda_project_tile.cu",
        "wmma::mma_sync(sum[c], rows[0], low, sum[c]);",
        "",
        "project_tile",
        "ascending",
    ),
    "project_tile: second part of float32 rows forgotten": (
        "project_normalize/cuda_project_tile.cu",
        "if constexpr (M::kParts == 2) wmma::mma_sync(sum[c], rows[1], high, sum[c]);",
        "",
        "project_tile",
        "ascending",
    ),
    "project_tile: operands not rounded to TF32": (
        "project_normalize/cuda_project_tile.cu",
        "*part = wmma::__float_to_tf32(value);",
        "*part = value;",
        "project_tile",
        "ascending",
    ),
    "project_tile: last tile of the depth skipped": (
        "project_normalize/cuda_project_tile.cu",
        "for (int64_t depth = 0; depth < k; depth += kDepth) {",
        "for (int64_t depth = 0; depth == 0 || depth + kDepth <= k; depth += kDepth) {",
        "project_tile",
        "ascending",
    ),
    "project_tile: one column too many": (
        "project_normalize/cuda_project_tile.cu",
        "if (col >= cols) continue;",
        "if (col > cols) continue;",
        "project_tile",
        "ascending",
    ),
    "project_tile: fragment off its boundary": (
        "project_normalize/cuda_project_tile.cu",
        "&stage->x[part][warp_row][step]",
        "&stage->x[part][warp_row][step + 1]",
        "project_tile",
        "ascending",
    ),
    "project_tile: scale of the matrix left in": (
        "project_normalize/cuda_project_tile.cu",
        "% kCols] / matrix_scale;",
        "% kCols];",
        "project_tile",
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
        "tower_descent/cuda_layer_norm.cu",
        "if (row >= rows) return;\n  const int64_t begin = threadIdx.x % kWarp * kStep;\n"
        "  const T* source = x + row * x_stride;\n  float sum = 0,",
        "if (row > rows) return;\n  const int64_t begin = threadIdx.x % kWarp * kStep;\n"
        "  const T* source = x + row * x_stride;\n  float sum = 0,",
        "layer_norm",
        "ascending",
    ),
    "layer_norm: gradient forgets the mean": (
        "tower_descent/cuda_layer_norm.cu",
        "(u[j] * w[j] - mean_u - (",
        "(u[j] * w[j] - (",
        "layer_norm",
        "ascending",
    ),
    "layer_norm: rows normed without their residual sum": (
        "tower_descent/cuda_layer_norm.cu",
        "source = total + row * total_stride;  // each lane reads",
        "// each lane reads",
        "layer_norm",
        "ascending",
    ),
    "layer_norm: residual sum without the delta": (
        "tower_descent/cuda_layer_norm.cu",
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
    "activate: last pack skipped": (
        "tower_descent/cuda_activation.cu",
        "if (i >= rows * packs) return;",
        "if (i + 1 >= rows * packs) return;",
        "activation",
        "ascending",
    ),
    "activate: sign of the slope's bend": (
        "tower_descent/cuda_activation.cu",
        "cdf + h * 0.398942280f",
        "cdf - h * 0.398942280f",
        "activation",
        "ascending",
    ),
    "attention: no barrier between queries and slots": (
        "tower_descent/cuda_attention.cu",
        "__syncthreads();  // the slots' sums run over the queries of all warps",
        ";",
        "attention",
        "ascending",
    ),
    "attention: scores read before they are written": (
        "tower_descent/cuda_attention.cu",
        "__syncwarp();  // lane 0 has written what all read",
        ";",
        "attention",
        "descending",
    ),
    "attention: probabilities scaled while others read them": (
        "tower_descent/cuda_attention.cu",
        "__syncwarp();  // all have read the unscaled values",
        ";",
        "attention",
        "ascending",
    ),
    "attention: last key skipped": (
        "tower_descent/cuda_attention.cu",
        "const float dp = dot_row(upstream, head.entry(2, list, j), a.width);",
        "const float dp = j + 1 < keys ? dot_row(upstream, head.entry(2, list, j), a.width) : 0;",
        "attention",
        "ascending",
    ),
    "attention: elements past the first 32 skipped": (
        "tower_descent/cuda_attention.cu",
        "own[e] = e * kWarp + lane < width ?",
        "own[e] = e * kWarp + lane < (width < 32 ? width : 32) ?",
        "attention",
        "ascending",
    ),
    "attention: a slot of a full list skipped": (
        "tower_descent/cuda_attention.cu",
        "(full ? first + s + 1 : last)",
        "(full ? first + s : last)",
        "attention",
        "ascending",
    ),
    "cosine_loss: gradient not scaled by the norm": (
        "tower_descent/cuda_descend.cu",
        "const float factor = grad_scale * inverse;",
        "const float factor = grad_scale;",
        "cosine_loss",
        "ascending",
    ),
    "adamw: decay forgotten": (
        "tower_descent/cuda_descend.cu",
        "1 - a.lr * a.weight_decay",
        "1",
        "adamw",
        "ascending",
    ),
    "adamw: gradient of the last slot skipped": (
        "tower_descent/cuda_descend.cu",
        "for (int64_t slot = 0; slot < slots; ++slot) {\n    if (source[slot] == r) g +=",
        "for (int64_t slot = 0; slot + 1 < slots; ++slot) {\n    if (source[slot] == r) g +=",
        "adamw",
        "ascending",
    ),
    "adamw: step not counted": (
        "tower_descent/cuda_descend.cu",
        "*step = now + 1;",
        "*step = now;",
        "adamw",
        "ascending",
    ),
    "adamw: scale of the gradient left in": (
        "tower_descent/cuda_descend.cu",
        "g *= grad_factor;",
        ";",
        "adamw",
        "ascending",
    ),
    "adamw: constants of the first sample for all": (
        "tower_descent/cuda_descend.cu",
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
    "topk: last group of scores skipped": (
        "topk/cuda.cu",
        "const int64_t groups = (cols + kWarp - 1) / kWarp;",
        "const int64_t groups = cols / kWarp;",
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
        "col < cols && first + col != excluded;",
        "col < cols && col != excluded;",
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
MUTATIONS |= TRAIN_MUTATIONS | tables("CUDA_MUTATIONS")


def broken(name: str, emulation: Emulation, folder: Path) -> Path:
    """The object of the one kernel whose case must notice, compiled with this piece of source broken."""
    file, text, replacement, case, _ = MUTATIONS[name]
    original = (CSRC / file).read_text()
    assert original.count(text) == 1, f"{file} holds {original.count(text)} times: {text!r}"
    # A header is compiled with the kernel whose case runs; a file finds headers beside it first.
    kernel = kernel_sources()[stem_of(case)]
    return compiled(emulation, kernel, file, original.replace(text, replacement), folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTATIONS)
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

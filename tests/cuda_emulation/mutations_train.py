"""Faults of the kernels of a SeMoBridge-T step, for test_mutations.py."""

from __future__ import annotations

SHOTS, LOSSES = "shots", "losses"


def _faults(
    stem: str, faults: dict[str, tuple[str, str] | tuple[str, str, str]]
) -> dict[str, tuple[str, str, str, str, str]]:
    """name: text, what stands there instead, and an order other than ascending."""
    return {
        name: (f"bridge_training/cuda_{stem}.cu", text, instead, stem, order[0] if order else "ascending")
        for name, (text, instead, *order) in faults.items()
    }


TRAIN_MUTATIONS = _faults(
    SHOTS,
    {
        "shot_norms: e with its bias not written": ("store(x, row + i);\n    }\n", "}\n"),
        "shot_norms: one row too many": (
            "if (n >= rows) return;\n  const int64_t begin",
            "if (n > rows) return;\n  const int64_t begin",
        ),
        "class_sums: last row skipped": ("n < end; ++n", "n + 1 < end; ++n"),
        "class_sums: rows of a chunk counted from the batch's": ("offsets[c] - row_begin", "offsets[c]"),
        "class_sums: what is added forgotten": (
            "extra == nullptr ? 0.0f : extra[c * cols + i]",
            "extra == nullptr ? 0.0f : 0.0f",
        ),
        "class_sums: stride of the rows ignored": ("x[n * x_stride + i]", "x[n * cols + i]"),
        "class_sums: one column too many": ("if (i >= cols) return;", "if (i > cols) return;"),
        "class_sums: sum in place of mean": ("reciprocal(norms[n]) * share", "reciprocal(norms[n])"),
        "row_dots: root of a negative": ("sqrtf(x < 0 ? 0.0f : x)", "sqrtf(x)"),
        "row_dots: NaN taken for 0": ("sqrtf(x < 0 ? 0.0f : x)", "sqrtf(x > 0 ? x : 0.0f)"),
        "row_dots: reciprocal of 0": ("x == 0 ? 0.0f : 1.0f / x", "1.0f / x"),
        "row_dots: tail of the sum skipped": (
            "i < width; i += kWarp * kStep) {\n    load(a + i, x);",
            "i + kStep < width; i += kWarp * kStep) {\n    load(a + i, x);",
        ),
        "shot_grads: the unit row's own direction kept": (" - along * x[j]", ""),
        "shot_grads: sign of the length's gradient": ("- length * old[j]", "+ length * old[j]"),
        "shot_grads: gradient of the first class for all": (
            "grad_mean + y * width",
            "grad_mean + 0 * y * width",
        ),
        "shot_grads: shots of the class forgotten": (
            "inverse / static_cast<float>(offsets[y + 1] - offsets[y])",
            "inverse",
        ),
        "unit_grad: adds without being asked": (
            "if (accumulate) load(out + n",
            "if (rows > 0) load(out + n",
        ),
        "unit_grad: not divided by the norm": ("(g[j] - x[j] * along) * inverse", "(g[j] - x[j] * along)"),
        "vectors in rows of odd width": ("return width % 4 == 0 &&", "return width > 0 &&"),
        "last block not launched": ("blocks_for(op, rows, kWarps", "blocks_for(op, rows - 1, kWarps"),
    },
) | _faults(
    LOSSES,
    {
        "row_loss: maximum read without a barrier": (
            "partial[threadIdx.x / kWarp] = value;\n      __syncthreads();",
            "partial[threadIdx.x / kWarp] = value;",
        ),
        "row_loss: maximum of the own warp": ("value = partial[w] > value ? partial[w] : value;", ";"),
        "row_loss: tail of the sum skipped": (
            "for (int64_t i = begin; i < classes; i += stride) {\n    logits(i);\n#pragma unroll\n"
            "    for (int j = 0; j < kStep; ++j) {\n      const float e",
            "for (int64_t i = begin; i + kStep < classes; i += stride) {\n    logits(i);\n#pragma unroll\n"
            "    for (int j = 0; j < kStep; ++j) {\n      const float e",
        ),
        "row_loss: gradient of the own class forgotten": ("i + j == y ? -others :", "i + j == y ? 0.0f :"),
        "row_loss: gradient without its scale": ("coefficient * factor / total", "coefficient / total"),
        "row_loss: the own class missing from the mean": (" + mine * own;", ";"),
        "row_loss: the first class's addition for all": ("add + y * classes", "add + 0 * y * classes"),
        "row_loss: stride of the rows ignored": ("x + n * x_stride;", "x + n * classes;"),
        "row_loss: one row too many": ("if (n >= rows) return;", "if (n > rows) return;"),
        "bias_loss: last class missing from the mean": (
            "c < classes; c += kThreads",
            "c + 1 < classes; c += kThreads",
        ),
        "bias_loss: mean forgotten": ("norms[c] - mean,", "norms[c],"),
        "total_loss: last part skipped": ("i < size; i += kTotal", "i + 1 < size; i += kTotal"),
        "total_loss: always the first step's": ("losses[*step] =", "losses[0 * *step] ="),
        "total_loss: step not handed on": ("*step_now = *step;", ";"),
        "adamw_flat: decay forgotten": ("f.keep = factors[0];", ";"),
        "adamw_flat: always the first step's rate": ("table + 3 * now", "table + 0 * now"),
        "adamw_flat: step not counted": ("*step = now + 1;", "*step = now;"),
        "adamw_flat: one value too many": ("if (i >= size) return;", "if (i > size) return;"),
    },
)
TRAIN_MUTATIONS |= _faults(
    "halves",
    {
        "cut_rows: one copy too few": ("copy < copies; ++copy", "copy + 1 < copies; ++copy"),
        "cut_rows: each lane's own largest entry": ("half_scale(warp_max(most))", "half_scale(most)"),
        "cut_rows: sign of the largest entry": (
            "most = fabsf(value[j]) > most ? fabsf(value[j]) : most;",
            "most = value[j] > most ? value[j] : most;",
        ),
        "cut_rows: stride of the rows ignored": ("x + n * x_stride;", "x + n * width;"),
        "cut_rows: one row too many": ("if (n >= rows) return;", "if (n > rows) return;"),
        "cut_rows: the power for its reciprocal": ("scale[n] = 1.0f / factor;", "scale[n] = factor;"),
        "add_halves: low halves forgotten": ("pair[2 * j + 1] + pair[2 * j]", "pair[2 * j]"),
        "add_halves: second part forgotten": ("int part = parts - 1;", "int part = 0 * parts;"),
        "add_halves: the first bound for all": ("col + j < split ? 0 : 1", "col + j < split ? 0 : 0"),
        "add_halves: adds without being asked": (
            "if (accumulate) load(target, old);",
            "if (rows > 0) load(target, old);",
        ),
        "add_halves: one pack too many": ("if (at >= rows * packs)", "if (at > rows * packs)"),
    },
)
TRAIN_MUTATIONS |= {
    name: (f"bridge_training/{file}", text, instead, case, "ascending")
    for name, file, text, instead, case in (
        ("halves: scaled beyond float16's range", "cuda_halves.cuh", "kHalfTop = 14;", "kHalfTop = 16;",
         "halves"),
        ("halves: infinity has a power", "cuda_halves.cuh", " || !(bound < INFINITY)", "", "halves"),
        ("halves: nothing left for the low one", "cuda_halves.cuh", "value - __half2float(*high)",
         "0 * value", "halves"),
        ("row_loss by halves: powers of the shots forgotten", "cuda_losses.cu", "more[j] * left_scale;",
         "more[j];", "losses_by_halves"),
        ("row_loss by halves: gradient without its row's power", "cuda_losses.cu",
         "value[j] *= left_scale * out_scale;", "value[j] *= out_scale;", "losses_by_halves"),
        ("row_loss by halves: gradient not brought to float16's range", "cuda_losses.cu",
         "value[j] *= left_scale * out_scale;", "value[j] *= left_scale;", "losses_by_halves"),
        ("class_sums by halves: low halves forgotten", "cuda_shots.cu", "(pair[1] + pair[0]) / left[n]",
         "pair[0] / left[n]", "sums_by_halves"),
        ("class_sums by halves: powers of the rows forgotten", "cuda_shots.cu",
         "(pair[1] + pair[0]) / left[n]", "(pair[1] + pair[0])", "sums_by_halves"),
        ("class_sums by halves: bound forgotten", "cuda_shots.cu", "sum /= half_scale(*bound);", ";",
         "sums_by_halves"),
    )
}  # fmt: skip
# In the header, as the kernels of cuda_losses.cu see it.
TRAIN_MUTATIONS |= {
    "block sum: partial sums read without a barrier": (
        "core/device.cuh",
        "partial[threadIdx.x / kWarp] = value;\n  __syncthreads();",
        "partial[threadIdx.x / kWarp] = value;",
        LOSSES,
        "ascending",
    ),
    "block sum: partial sums overwritten too early": (
        "core/device.cuh",
        "__syncthreads();  // the last use of `partial` is over",
        ";",
        LOSSES,
        "shuffled",
    ),
}

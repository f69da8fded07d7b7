"""The attention kernels of csrc/tower_descent against float64, and how to break them."""

from __future__ import annotations

import math

import numpy as np

from tests.cuda_emulation.buffers import FLOAT, Matrix, plain
from tests.cuda_emulation.cases import PLACE, STORAGES, close, complex_step
from tests.support.comparer import compare


def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities, their average of the values, and the logarithm of the softmax's sum."""
    score = k @ q / math.sqrt(q.size)
    largest = np.max(score.real)
    e = np.exp(score - largest)
    return e / e.sum(), e / e.sum() @ v, np.log(e.sum()) + largest


def visible_slots(kind: str, queries: int, slots: int, rng: np.random.Generator) -> list[list[int]]:
    """Causal: a slot sees itself and the later-numbered ones, which lie before it in the text."""
    if kind == "some":
        return [sorted({i, *rng.integers(0, slots, 3).tolist()}) for i in range(queries)]
    return [list(range(i if kind == "causal" else 0, slots)) for i in range(queries)]


# samples, heads, width, slots, queries, prefix, who sees whom, columns between two rows
SHAPES = (
    (1, 1, 8, 1, 1, 0, "causal", 5), (17, 3, 64, 2, 2, 4, "causal", 8), (9, 2, 64, 2, 1, 4, "causal", 0),
    (3, 2, 20, 2, 1, 5, "causal", 5), (1, 2, 72, 6, 6, 0, "all", 8), (2, 1, 33, 5, 5, 34, "causal", 5),
    (1, 1, 128, 40, 1, 0, "all", 0), (2, 1, 40, 21, 19, 17, "some", 8), (1, 1, 16, 64, 64, 0, "all", 0),
)  # fmt: skip


def case_attention(m, rng: np.random.Generator) -> None:
    for samples, heads, width, slots, queries, prefix, kind, gap in SHAPES:
        for dtype in STORAGES:
            model = heads * width
            qkv = Matrix(slots * samples, 3 * model, dtype, gap=gap, values=rng.standard_normal(
                (slots * samples, 3 * model)))  # fmt: skip
            kv = Matrix(2 * prefix, model, dtype, values=rng.standard_normal((2 * prefix, model)))
            lists = visible_slots(kind, queries, slots, rng)
            visible = plain([sum(1 << slot for slot in own) for own in lists], np.uint64)
            lse = Matrix(samples * heads, queries)
            o = Matrix(queries * samples, model, dtype, gap=gap)
            grad_o = Matrix(queries * samples, model, dtype, gap=gap, values=rng.standard_normal(
                (queries * samples, model)))  # fmt: skip
            grad = Matrix(slots * samples, 3 * model, dtype, gap=gap)
            shape = (
                qkv.view, samples, heads, slots, queries, prefix, kv.address if prefix else 0,
                visible.ctypes.data, lse.address,
            )  # fmt: skip
            m.attention_cuda(*shape, o.view, *PLACE)
            want_o, want_grad = np.zeros(o.values.shape), np.zeros(grad.values.shape)
            rows = qkv.values.reshape(slots, samples, 3, heads, width)
            fixed = kv.values.reshape(2, prefix, heads, width)
            want_lse = np.zeros((samples, heads, queries))
            upstream = grad_o.values.reshape(queries, samples, heads, width)
            out = want_o.reshape(queries, samples, heads, width)
            back = want_grad.reshape(slots, samples, 3, heads, width)
            for s in range(samples):
                for h in range(heads):
                    for i, own in enumerate(lists):
                        k = np.concatenate([fixed[0, :, h], rows[own, s, 1, h]])
                        v = np.concatenate([fixed[1, :, h], rows[own, s, 2, h]])
                        q, g = rows[i, s, 0, h], upstream[i, s, h]
                        weights, out[i, s, h], want_lse[s, h, i] = attend(q, k, v)
                        jacobian = np.diag(weights) - np.outer(weights, weights)
                        score_grad = jacobian @ (v @ g) / math.sqrt(width)
                        back[i, s, 0, h] = score_grad @ k
                        for at, slot in enumerate(own):
                            back[slot, s, 1, h] += score_grad[prefix + at] * q
                            back[slot, s, 2, h] += weights[prefix + at] * g
            close(o.values, want_o, dtype, "attention")
            close(lse.values, want_lse.reshape(lse.values.shape), FLOAT, "attention lse")
            m.attention_grad_cuda(*shape, grad_o.view, grad.address, *PLACE)
            if slots * samples > 1 or prefix:  # one key alone: probabilities do not move
                close(grad.values, want_grad, dtype, "attention_grad")
            for buffer in (o, grad, lse):
                buffer.check_guards()
    # The oracle's own gradient, by complex steps.
    k, v, q, g = (rng.standard_normal(s) for s in ((5, 8), (5, 8), 8, 8))
    w = attend(q, k, v)[0]
    by_hand = (np.diag(w) - np.outer(w, w)) @ (v @ g) / math.sqrt(8) @ k
    compare(by_hand, g @ complex_step(lambda c: attend(c, k, v)[1], q), "reference", "float64")


_ATTENTION = "tower_descent/cuda_attention.cuh"
CUDA_MUTATIONS = {
    "attention: no barrier between queries and slots": (
        _ATTENTION,
        "__syncthreads();  // the slots' sums run over the queries of all groups",
        ";",
        "attention",
        "shuffled",
    ),
    "attention: tile of the prefix overwritten while others use it": (
        _ATTENTION,
        "  __syncthreads();  // the last tile has been used\n",
        "",
        "attention",
        "shuffled",
    ),
    "attention: tile of the prefix used before it is complete": (
        _ATTENTION,
        "  __syncthreads();  // the tile is complete\n",
        "",
        "attention",
        "descending",
    ),
    "attention: dot product over half of the lanes": (
        _ATTENTION,
        "for (int offset = kLanes / 2; offset > 0;",
        "for (int offset = kLanes / 4; offset > 0;",
        "attention",
        "ascending",
    ),
    "attention: last prefix row of a tile skipped": (
        _ATTENTION,
        "const int count = a.prefix_rows - first < kTile ? a.prefix_rows - first : kTile;",
        "const int count = a.prefix_rows - first < kTile ? a.prefix_rows - first : kTile - 1;",
        "attention",
        "ascending",
    ),
    "attention: last slot skipped": (
        _ATTENTION,
        "for (int j = 0; j < a.slots; ++j) {\n      other.read",
        "for (int j = 0; j + 1 < a.slots; ++j) {\n      other.read",
        "attention",
        "ascending",
    ),
    "attention: earlier keys not scaled to the new maximum": (
        _ATTENTION,
        "out.at[e] = out.at[e] * rest + weight",
        "out.at[e] = out.at[e] + weight",
        "attention",
        "ascending",
    ),
    "attention: gradient without the mean": (
        _ATTENTION,
        "weighted.add(-mean, plain);",
        "weighted.add(0.0f * mean, plain);",
        "attention",
        "ascending",
    ),
    "attention: every slot taken for a visible one": (
        _ATTENTION,
        "const bool seen = a.visible[i] >> item.slot & 1;",
        "const bool seen = true;",
        "attention",
        "ascending",
    ),
    "attention: a row past the last sample written": (
        _ATTENTION,
        "live = sample <= last;",
        "live = sample <= last + 1;",
        "attention",
        "ascending",
    ),
    "attention: vectors where rows are not aligned": (
        "tower_descent/cuda_attention.cu",
        "if (aligned) return f(storage, own, std::integral_constant<int, kStep>{});",
        "if (aligned || own > 0) return f(storage, own, std::integral_constant<int, kStep>{});",
        "attention",
        "ascending",
    ),
}

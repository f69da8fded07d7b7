"""The attention and the products of few rows of csrc/tower_descent against float64; how to break them."""

from __future__ import annotations

import math

import numpy as np

from tests.cuda_emulation.buffers import FLOAT, NOTHING, Matrix, plain
from tests.cuda_emulation.cases import PLACE, STORAGES, activations, close, complex_step
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


_ATTENTION = "tower_descent/cuda_attention.cu"
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
        _ATTENTION,
        "if (aligned) return f(storage, own, std::integral_constant<int, kStep>{});",
        "if (aligned || own > 0) return f(storage, own, std::integral_constant<int, kStep>{});",
        "attention",
        "ascending",
    ),
}


# -- few rows ----------------------------------------------------------------------------------------

PLAIN, NORM, NORM_GRAD = range(3)
STORE, SUM, ACTIVATE, ACTIVATE_GRAD, NORM_GRAD_STATS = range(5)
NO_NORM = (0, 0, 1e-5, 0, 0, 0)
COLS = 32  # of a tile that has statistics


def normal(rng: np.random.Generator, rows: int, cols: int, dtype: int = FLOAT, **layout: int) -> Matrix:
    return Matrix(rows, cols, dtype, values=rng.standard_normal((rows, cols)) + 0.3, **layout)


def tile_pairs(first: np.ndarray, second: np.ndarray | None = None) -> np.ndarray:  # [N, T] -> [tiles, N, 2]
    """Mean and squared deviations of each tile's columns, or the sums of two arrays."""
    found = []
    for at in range(0, first.shape[1], COLS):
        a = first[:, at : at + COLS]
        if second is None:
            mean = a.mean(1)
            found.append(np.stack([mean, ((a - mean[:, None]) ** 2).sum(1)], -1))
        else:
            found.append(np.stack([a.sum(1), second[:, at : at + COLS].sum(1)], -1))
    return np.stack(found)


def stored_pairs(pairs: np.ndarray) -> Matrix:  # [tiles, N, 2]
    return Matrix(1, pairs.size, values=pairs.reshape(1, -1))


class Side:
    """A norm before or behind a product: what the kernel is given, and what float64 makes of it."""

    def __init__(self, rng: np.random.Generator, rows: np.ndarray) -> None:  # [N, T], as they are normed
        n, width = rows.shape
        self.rows, self.eps = rows, 1e-5
        self.weight, self.bias = normal(rng, 1, width), normal(rng, 1, width)
        self.mean, self.rstd = Matrix(1, n, values=0.0), Matrix(1, n, values=0.0)

    def told(self) -> Side:
        """With the statistics that a forward pass has left."""
        self.mean = Matrix(1, len(self.rows), values=self.rows.mean(1)[None])
        self.rstd = Matrix(1, len(self.rows), values=1 / np.sqrt(self.rows.var(1) + self.eps)[None])
        return self

    def hat(self) -> np.ndarray:
        return (self.rows - self.mean.values[0][:, None]) * self.rstd.values[0][:, None]

    def arguments(self, stats: Matrix) -> tuple:
        return (self.weight.address, self.bias.address, self.eps, self.mean.address, self.rstd.address,
                stats.address)  # fmt: skip

    def normed(self) -> np.ndarray:
        centred = self.rows - self.rows.mean(1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(1, keepdims=True) + self.eps) * self.weight.values + (
            self.bias.values
        )

    def grad(self, upstream: np.ndarray) -> np.ndarray:
        u, hat = upstream * self.weight.values, self.hat()
        means = u.mean(1, keepdims=True), (u * hat).mean(1, keepdims=True)
        return self.rstd.values[0][:, None] * (u - means[0] - hat * means[1])


def run_few_rows(m, x: Matrix, weight: Matrix, transposed: bool, before: tuple, behind: tuple, y: Matrix):
    """Twice: the second launch meets the first one's tickets, and must give the same bits."""
    cols = weight.rows if transposed else weight.cols
    room = plain(np.zeros(m.few_rows_cuda_sums(x.rows, x.cols, cols) + 8), np.float32)
    sums = room[-room.ctypes.data % 32 // 4 :]  # where wmma may store
    tickets = plain(np.zeros(m.few_rows_cuda_tickets(x.rows, cols)), np.int32)
    results = []
    for _ in range(2):
        room[...] = np.nan
        m.few_rows_cuda(x.view, weight.view, transposed, before, behind, y.view, sums.ctypes.data,
                        tickets.ctypes.data, *PLACE)  # fmt: skip
        assert not tickets.any(), "tickets are not back at zero"
        results.append(y.values)
    assert np.array_equal(*results, equal_nan=True), "two launches differ"
    y.check_guards()


def check_before(m, kind: int, x: Matrix, rng: np.random.Generator) -> tuple[tuple, np.ndarray]:
    """What is before a product, and the left operand as the kernel rounds it, held against float64."""
    none, dtype, (n, k) = NOTHING, x.dtype, (x.rows, x.cols)
    if kind == PLAIN:
        return (PLAIN, NO_NORM, none, none, none), x.values
    identity, left = Matrix(k, k, dtype, values=np.eye(k)), Matrix(n, k, dtype)
    store = (STORE, NO_NORM, 0, none, 0, none)
    if kind == NORM:
        side = Side(rng, x.values)
        stats = stored_pairs(tile_pairs(x.values))
        before = (NORM, side.arguments(stats), none, none, none)
        run_few_rows(m, x, identity, False, before, store, left)
        close(side.mean.values[0], x.values.mean(1), FLOAT, "few_rows mean")
        close(side.rstd.values[0], 1 / np.sqrt(x.values.var(1) + side.eps), FLOAT, "few_rows rstd")
        close(left.values, side.normed(), dtype, "few_rows norm")
        KEPT.extend([side, stats])
        return before, left.values
    normed, residual = normal(rng, n, k, dtype, gap=8), normal(rng, n, k, dtype)
    side, grad = Side(rng, normed.values).told(), Matrix(n, k, dtype, gap=8)
    u = x.values * side.weight.values
    stats = stored_pairs(tile_pairs(u, u * side.hat()))
    for added in (False, True):
        given = residual.view if added else none
        before = (NORM_GRAD, side.arguments(stats), normed.view, given, grad.view)
        run_few_rows(m, x, identity, False, before, store, left)
        want = side.grad(x.values) + (residual.values if added else 0)
        close(grad.values, want, dtype, "few_rows norm_grad")
        grad.check_guards()
        close(left.values, grad.values, dtype, "few_rows norm_grad left")
    KEPT.extend([side, stats, normed, residual, grad])
    return before, grad.values


KEPT: list[object] = []  # arrays whose addresses a launch still names


def check_behind(m, kind: int, x: Matrix, weight: Matrix, transposed: bool, before: tuple, left: np.ndarray,
                 rng: np.random.Generator) -> None:  # fmt: skip
    dtype, n = x.dtype, x.rows
    matrix = weight.values.T if transposed else weight.values
    cols = matrix.shape[1]
    bias, other = normal(rng, 1, cols, dtype, shift=1), normal(rng, n, cols, dtype, gap=3)
    y, second = Matrix(n, cols, dtype, gap=3), Matrix(n, cols, dtype)
    side = Side(rng, other.values).told()
    pairs = Matrix(1, 2 * n * m.few_rows_cuda_tiles(cols))
    biased = kind in (STORE, SUM, ACTIVATE)
    activation = cols % 3
    behind = (kind, side.arguments(pairs), bias.address if biased else 0,
              NOTHING if kind in (STORE, ACTIVATE) else other.view, activation, second.view)  # fmt: skip
    run_few_rows(m, x, weight, transposed, before, behind, y)
    want = left @ matrix + (bias.values if biased else 0)
    if kind == SUM:
        want = want + other.values
    if kind == ACTIVATE_GRAD:
        want = want * activations(other.values)[activation][1]
    close(y.values, want, dtype, f"few_rows {('y', 'sum', 'h', 'act grad', 'grad')[kind]}")
    found = pairs.values.reshape(-1, n, 2)
    if kind == ACTIVATE:
        close(second.values, activations(y.values)[activation][0], dtype, "few_rows act")
        second.check_guards()
    elif kind == SUM:
        close(found[..., 1], tile_pairs(y.values)[..., 1], FLOAT, "few_rows deviations")
        scale = np.abs(y.values).max(1)[None].repeat(len(found), 0)  # a mean near zero has no scale
        means = np.concatenate([tile_pairs(y.values)[..., 0], scale], 1)
        close(np.concatenate([found[..., 0], scale], 1), means, FLOAT, "few_rows means")
    elif kind == NORM_GRAD_STATS:
        u = y.values * side.weight.values
        parts, scale = (u, u * side.hat()), np.abs(u).sum(1)[None].repeat(len(found), 0)
        for i, name in enumerate(("u", "ux")):
            want = np.concatenate([tile_pairs(*parts)[..., i], scale], 1)
            close(np.concatenate([found[..., i], scale], 1), want, FLOAT, f"few_rows sums of {name}")
    pairs.check_guards()


# rows, K, columns
FEW = ((1, 8, 8), (5, 40, 72), (70, 136, 40), (17, 264, 32), (64, 64, 96))


def case_few_rows(m, rng: np.random.Generator) -> None:
    for at, (n, k, cols) in enumerate(FEW):
        for dtype in STORAGES:
            x = normal(rng, n, k, dtype, gap=8)
            for before_kind in (PLAIN, NORM, NORM_GRAD):
                if k < 40 and before_kind != PLAIN:
                    continue  # eight columns of one row say little of a norm
                before, left = check_before(m, before_kind, x, rng)
                for kind in range(5):
                    transposed = (kind + before_kind + at) % 2 == 1
                    shape = (cols, k) if transposed else (k, cols)
                    weight = normal(rng, *shape, dtype, gap=8)
                    check_behind(m, kind, x, weight, transposed, before, left, rng)
                KEPT.clear()
    # A row's bits are its own: alone, among others, and beside one that is not a number.
    values, matrix = rng.standard_normal((70, 264)), normal(rng, 264, 40)
    none = ((PLAIN, NO_NORM, NOTHING, NOTHING, NOTHING), (STORE, NO_NORM, 0, NOTHING, 0, NOTHING))
    whole, alone = Matrix(70, 40), Matrix(1, 40)
    run_few_rows(m, Matrix(70, 264, values=values), matrix, False, *none, whole)
    run_few_rows(m, Matrix(1, 264, values=values[66]), matrix, False, *none, alone)
    assert (alone.values[0] == whole.values[66]).all(), "a row's result depends on its batch"
    values[65, 3], bad = np.nan, Matrix(70, 40)
    run_few_rows(m, Matrix(70, 264, values=values), matrix, False, *none, bad)
    assert np.isnan(bad.values[65]).all()
    others = np.arange(70) != 65
    assert (bad.values[others] == whole.values[others]).all()
    # So many columns that a block takes several steps along K.
    wide, y = normal(rng, 264, 1400), Matrix(3, 1400)
    run_few_rows(m, Matrix(3, 264, values=values[:3]), wide, False, *none, y)
    close(y.values, Matrix(3, 264, values=values[:3]).values @ wide.values, FLOAT, "few_rows y")
    nothing = Matrix(0, 264)
    m.few_rows_cuda(nothing.view, matrix.view, False, *none, Matrix(0, 40).view, 0, 0, *PLACE)
    try:
        run_few_rows(m, Matrix(2, 264, shift=1, values=1.0), matrix, False, *none, Matrix(2, 40))
    except ValueError as error:
        assert "aligned to 16 bytes" in str(error)
    else:
        raise AssertionError("rows off a 16-byte boundary were accepted")


_FEW, _FEW_PARTS = "tower_descent/cuda_few_rows.cu", "tower_descent/cuda_few_rows.cuh"
CUDA_MUTATIONS |= {
    f"few_rows: {name}": (file, text, instead, "few_rows", order)
    for name, file, text, instead, order in (
        (
            "tile overwritten while others multiply",
            _FEW,
            "__syncthreads();  // statistics are merged, the last tile has been multiplied",
            ";",
            "shuffled",
        ),
        ("tile multiplied before it is complete", _FEW, "__syncthreads();  // the tile is complete", ";",
         "shuffled"),
        ("sums not fenced before the ticket", _FEW,
         "__threadfence();  // this thread's sums are visible to every block that sees its ticket", "",
         "ascending"),
        ("ticket taken before the sums are written", _FEW,
         "sees its ticket\n  __syncthreads();", "sees its ticket", "shuffled"),
        ("sums of others read without a fence", _FEW,
         "if (stage->is_last != 1) return;\n  __threadfence();", "if (stage->is_last != 1) return;",
         "ascending"),
        ("flag read without a barrier", _FEW,
         "== splits - 1;\n  __syncthreads();", "== splits - 1;", "descending"),
        ("tickets not given back", _FEW, "*ticket = 0;", ";", "ascending"),
        ("a part of K left out", _FEW, "part < splits; ++part", "part < splits - (splits > 2); ++part",
         "ascending"),
        ("a step of a part left out", _FEW, "static_cast<int>(blockIdx.z + 1) * steps / splits;",
         "static_cast<int>(blockIdx.z + 1) * steps / splits - (steps > splits);", "ascending"),
        ("last row of a tile left out", _FEW, "r < rows; r += kFewThreads / kWarp",
         "r < rows - 1; r += kFewThreads / kWarp", "ascending"),
        ("columns of the matrix for rows", _FEW,
         "std::conditional_t<kTransposed, wmma::col_major, wmma::row_major>",
         "std::conditional_t<!kTransposed, wmma::col_major, wmma::row_major>", "ascending"),
        ("small parts of float32 forgotten", _FEW,
         "parts[1] = wmma::__float_to_tf32(value - parts[0]);", "parts[1] = 0;", "ascending"),
        ("one column too many", _FEW_PARTS, "const bool live = lane < left;",
         "const bool live = lane <= left;", "ascending"),
        ("deviations about the tile's own mean", _FEW_PARTS, "second += count * apart * apart;",
         "second += 0 * apart;", "ascending"),
        ("last tile's statistics left out", _FEW_PARTS,
         "const int tiles = (p.k + kFewCols - 1) / kFewCols;", "const int tiles = p.k / kFewCols;",
         "ascending"),
        ("gradient without the mean of u·x̂", _FEW_PARTS, "- mean_u - hat * mean_ux", "- mean_u",
         "ascending"),
        ("gradient written by nobody", _FEW_PARTS, "if (writes) store(value,", "if (p.k < 0) store(value,",
         "ascending"),
        ("residual left out", _FEW_PARTS, "if (p.behind == Behind::kSum) sum += other;", "", "ascending"),
        ("slope left out", _FEW_PARTS, "if (p.behind == Behind::kActivateGrad) sum *=",
         "if (p.behind == Behind::kActivateGrad) sum += 0 *", "ascending"),
        ("statistics over half a warp's columns", _FEW_PARTS,
         "second = warp_sum(live ? (y - first) * (y - first) : 0.0f);",
         "second = warp_sum(live && lane < 16 ? (y - first) * (y - first) : 0.0f);", "ascending"),
    )
}  # fmt: skip

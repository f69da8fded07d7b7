"""The products of few rows of csrc/tower_descent, with what stands around them, against float64."""

from __future__ import annotations

import numpy as np

from tests.cuda_emulation.buffers import FLOAT, NOTHING, Matrix, plain
from tests.cuda_emulation.cases import PLACE, STORAGES, activations, close

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

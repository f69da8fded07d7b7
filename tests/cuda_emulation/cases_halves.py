"""Kernels of products by halves (csrc/bridge_training/cuda_halves.cuh) against NumPy's float16 and loops."""

from __future__ import annotations

import numpy as np

from tests.cuda_emulation import buffers
from tests.cuda_emulation.buffers import FLOAT, HALF, Matrix, plain
from tests.cuda_emulation.cases import PLACE, close, complex_step
from tests.cuda_emulation.cases_train import BATCHES, batch, check, cross_entropy, per_class, shifts


def power(bound) -> np.ndarray:
    """Powers of two that bring `bound` to [2^14, 2^15)."""
    return np.exp2(14 - np.floor(np.log2(bound)))


def halves_of(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    high = values.astype(np.float16)
    return high, (values - high.astype(np.float64)).astype(np.float16)


def pairs_of(values: np.ndarray) -> np.ndarray:
    """[N, C] as the float32 words that hold (high, low)."""
    return np.stack(halves_of(values), -1).view(np.uint32)[..., 0]


def values_of(x: Matrix) -> np.ndarray:
    """Of pairs in the words of a matrix."""
    words = np.ascontiguousarray(x._words)
    return words.view(np.float16).reshape(*words.shape, 2).astype(np.float64).sum(-1)


def cut_rows(m, rng: np.random.Generator) -> None:
    for rows, width in ((1, 1), (5, 33), (9, 64), (4, 260)):
        for shift in shifts():
            for gap, copies in ((0, 1), (4, 2)):
                size = 10.0 ** rng.integers(-30, 30, (rows, 1))
                values = size * rng.standard_normal((rows, width))
                values[rows // 2 + 1 :][:1] = 0
                x = Matrix(rows, width, shift=shift, gap=gap, values=values)
                out, scale = Matrix(rows, (copies + 1) * width, HALF), Matrix(1, rows)
                m.cut_rows_cuda(x.view, copies, out.address, scale.address, *PLACE)
                largest, back = np.abs(x.values).max(1), scale.values[0]
                live = largest > 0
                assert (back[~live] == 1).all() and (back[live] * power(largest[live]) == 1).all()
                high, low = halves_of(x.values / back[:, None])
                want = np.concatenate([*[high] * copies, low], 1)
                assert (out.values == want).all(), "halves of another scale, or in other places"
                close(back[:, None] * (high.astype(float) + low), x.values, FLOAT, "cut_rows")
                check(x, out, scale)
    bad = np.ones((2, 8))
    bad[0, 3], bad[1, 2] = np.nan, np.inf
    x, out, scale = Matrix(2, 8, values=bad), Matrix(2, 16, HALF), Matrix(1, 2)
    m.cut_rows_cuda(x.view, 1, out.address, scale.address, *PLACE)
    assert np.isnan(out.values[0, [3, 11]]).all() and np.isnan(out.values).sum() == 3, "not a number stays so"
    assert scale.values[0].tolist() == [2.0**-14, 1] and np.isnan(out.values[1, 10])
    m.cut_rows_cuda((*x.view[:2], 0, *x.view[3:]), 1, out.address, scale.address, *PLACE)


def add_halves(m, rng: np.random.Generator) -> None:
    for rows, cols, gap in ((1, 1, 0), (3, 7, 1), (5, 64, 0), (9, 130, 2)):
        for parts, accumulate in ((1, False), (2, True)):
            raw = Matrix(parts * rows, 2 * cols, values=1e3 * rng.standard_normal((parts * rows, 2 * cols)))
            out = Matrix(rows, cols, gap=gap, values=1e-3 * rng.standard_normal((rows, cols)))
            bounds, before = Matrix(1, 2, values=[0.01, 37]), out.values
            split = cols // 2
            m.add_halves_cuda(raw.view, parts, bounds.address, split, out.view, accumulate, *PLACE)
            found = raw.values.reshape(parts, rows, cols, 2).sum((0, 3))
            factor = np.where(np.arange(cols) < split, *power(bounds.values[0]))
            close(out.values, found / factor + accumulate * before, FLOAT, "add_halves")
            check(raw, out, bounds)
    raw, out, bounds = Matrix(2, 8, values=1.0), Matrix(2, 4), Matrix(1, 2, values=[0.0, np.nan])
    m.add_halves_cuda(raw.view, 1, bounds.address, 2, out.view, False, *PLACE)
    assert (out.values == 2).all(), "no bound, no power"


def row_loss(m, rng: np.random.Generator) -> None:
    shapes = ((1, 2), (5, 3), (19, 33), (10, 64), (3, 301), (2, 512))
    for n, classes in shapes if buffers.SANITIZED else (*shapes, (2, 2053)):
        labels = plain(rng.integers(classes, size=n), np.int64)
        add = Matrix(classes, classes, values=rng.standard_normal((classes, classes)))
        right = Matrix(1, classes, values=np.exp2(rng.integers(-20, 9, classes)))
        for gap, given in ((0, True), (3, True), (4, False)):
            # Rows of any length: what scales the logits is the reciprocal of that.
            length = np.exp2(rng.integers(*((-3, 3) if given else (-30, 30)), n))
            left, scale = Matrix(1, n, values=length), Matrix(1, n, values=(1 + rng.random(n)) / length)
            bound = Matrix(1, 1, values=0.3 * (scale.values * left.values).max())
            meant = (length[:, None] * rng.standard_normal((n, classes))).astype(np.float32)
            powers = left.values[0][:, None] * right.values
            x = Matrix(n, classes, gap=gap, values=meant / powers)
            loss, dot = Matrix(1, n), Matrix(1, n)
            m.row_loss_halves_cuda(
                x.view, labels.ctypes.data, 0.3, scale.address, add.address if given else 0, loss.address,
                dot.address if given else 0, left.address, right.address, bound.address, *PLACE,
            )  # fmt: skip
            shift = add.values[labels] if given else 0 * meant
            each = list(zip(meant.astype(float), shift, scale.values[0], labels, strict=True))
            want = np.stack([
                0.3 * complex_step(lambda v, s=s, f=f, y=y: cross_entropy((v + s) * f, y), row)
                for row, s, f, y in each
            ])  # fmt: skip
            got = values_of(x) / power(bound.values[0, 0]) / left.values[0][:, None]
            close(got, want, FLOAT, "row_loss by halves grad")
            entropy = np.array([cross_entropy((row + s) * f, y) for row, s, f, y in each])
            close(loss.values, 0.3 * entropy[None], FLOAT, "row_loss by halves")
            if given:
                logits = np.stack([(row + s) * f for row, s, f, _ in each])
                slopes = (want / scale.values[0][:, None] * logits).sum(1)
                close(dot.values, slopes[None], FLOAT, "row_loss by halves dot")
            check(x, loss, dot)


def class_sums(m, rng: np.random.Generator) -> None:
    for counts, width in BATCHES:
        _, offsets = batch(counts)
        n, classes = sum(counts), len(counts)
        left = Matrix(1, n, values=np.exp2(rng.integers(-9, 9, n)))
        for gap, begin in ((0, 0), (3, classes - 1)):
            first = int(offsets[begin])
            if first == n:
                continue
            x = Matrix(n, width, gap=gap)
            x._words[...] = pairs_of(2.0**13 * rng.standard_normal((n, width)))
            bound, out = Matrix(1, 1, values=0.02), Matrix(classes - begin, width)
            rows = (x.address + 4 * first * x.stride, FLOAT, n - first, width, x.stride)
            m.class_sums_halves_cuda(
                classes - begin, offsets[begin:].ctypes.data, first, rows, left.address + 4 * first,
                bound.address, out.address, *PLACE,
            )  # fmt: skip
            meant = values_of(x) / left.values[0][:, None] / power(bound.values[0, 0])
            close(out.values, per_class(meant, counts)[begin:], FLOAT, "class_sums by halves")
            check(x, out, left)


def case_halves(m, rng: np.random.Generator) -> None:
    for part in (cut_rows, add_halves):
        part(m, rng)


def case_losses_by_halves(m, rng: np.random.Generator) -> None:
    row_loss(m, rng)


def case_sums_by_halves(m, rng: np.random.Generator) -> None:
    class_sums(m, rng)

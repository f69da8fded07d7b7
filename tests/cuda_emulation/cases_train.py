"""The kernels of a SeMoBridge-T step against float64 oracles.

Gradients are derivatives by complex steps of what the step means, not of how the kernels split it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from tests.cuda_emulation import buffers
from tests.cuda_emulation.buffers import FLOAT, Matrix, plain
from tests.cuda_emulation.cases import PLACE, close, complex_step, norm_rows
from tests.support.comparer import compare

# Shots per class and width of the rows: odd sizes, tails, one shot, one class, classes without a shot.
BATCHES = (([3], 1), ([1, 4, 0, 2], 33), ([2, 2, 2], 64), ([1] * 9, 7), ([2, 35, 1], 132), ([5, 0], 260))


def check(*matrices: Matrix) -> None:
    for matrix in matrices:
        matrix.check_guards()


def shifts() -> Iterator[int]:
    yield 0
    yield 1  # off the 16-byte boundary that vectors need


def batch(counts: list[int]) -> tuple[np.ndarray, np.ndarray]:
    return plain(np.repeat(np.arange(len(counts)), counts), np.int64), plain(
        np.cumsum([0, *counts]), np.int64
    )


def per_class(rows: np.ndarray, counts: list[int]) -> np.ndarray:
    ends = np.cumsum(counts)
    return np.stack([rows[end - k : end].sum(0) for k, end in zip(counts, ends, strict=True)])


def shot_norms(m, rng: np.random.Generator) -> None:
    for counts, width in BATCHES:
        labels, _ = batch(counts)
        n = len(labels)
        for shift in shifts():
            for biased in (True, False):
                values = rng.standard_normal((n, width))
                values[n // 2] = 0
                e = Matrix(n, width, shift=shift, values=values)
                shape = (len(counts), width)
                tau = Matrix(*shape, shift=shift, values=rng.standard_normal(shape))
                r, before = Matrix(1, n), e.values
                address = tau.address if biased else 0
                m.shot_norms_cuda(n, width, labels.ctypes.data, e.address, address, r.address, *PLACE)
                want = before + (tau.values[labels] if biased else 0)
                close(e.values, want, FLOAT, "shot_norms e")
                close(r.values, np.linalg.norm(want, axis=1)[None], FLOAT, "shot_norms r")
                check(e, r, tau)
    none = Matrix(1, 1)
    m.shot_norms_cuda(0, 5, labels.ctypes.data, none.address, 0, none.address, *PLACE)


def class_sums(m, rng: np.random.Generator) -> None:
    for counts, width in BATCHES:
        _, offsets = batch(counts)
        n, classes = sum(counts), len(counts)
        for gap in (0, 3):
            values = rng.standard_normal((n, width))
            values[0] = 0
            x = Matrix(n, width, gap=gap, values=values)
            lengths = Matrix(1, n, values=np.linalg.norm(x.values, axis=1))
            extra = Matrix(classes, width, values=rng.standard_normal((classes, width)))
            for norms, added in ((0, 0), (lengths.address, 0), (0, extra.address)):
                out = Matrix(classes, width)
                m.class_sums_cuda(classes, offsets.ctypes.data, 0, x.view, norms, added, out.address, *PLACE)
                if norms:
                    share = np.maximum(counts, 1)[:, None]
                    want = per_class(norm_rows(x.values)[0], counts) / share
                else:
                    want = per_class(x.values, counts) + (extra.values if added else 0)
                if want.any():
                    close(out.values, want, FLOAT, "class_sums")
                assert (out.values[np.array(counts) == 0] == (extra.values[np.array(counts) == 0] if added
                        else 0)).all()  # fmt: skip
                check(out, x, lengths, extra)
            # The last classes alone, as a chunk: its rows begin elsewhere.
            out, begin = Matrix(1, width), int(offsets[-2])
            if counts[-1]:
                chunk = (x.address + 4 * begin * x.stride, FLOAT, x.rows - begin, width, x.stride)
                m.class_sums_cuda(1, offsets[-2:].ctypes.data, begin, chunk, 0, 0, out.address, *PLACE)
                close(out.values, x.values[begin:].sum(0)[None], FLOAT, "class_sums")
    bad = np.ones((3, 5))
    bad[2, 3] = np.nan
    x, out, offsets = Matrix(3, 5, values=bad), Matrix(2, 5), plain([0, 2, 3], np.int64)
    lengths = Matrix(1, 3, values=np.linalg.norm(bad, axis=1))
    m.class_sums_cuda(2, offsets.ctypes.data, 0, x.view, lengths.address, 0, out.address, *PLACE)
    assert np.isfinite(out.values[0]).all() and np.isnan(out.values[1]).all(), "NaN left its class"


def row_dots(m, rng: np.random.Generator) -> None:
    for n, width in ((1, 1), (5, 33), (9, 64), (4, 260)):
        for shift in shifts():
            a = Matrix(n, width, shift=shift, values=rng.standard_normal((n, width)))
            # Their product with `a`, were it rounded below 0, has no root; a zero row no reciprocal.
            b = Matrix(n, width, shift=shift, values=a.values + 0.3 * rng.standard_normal((n, width)))
            if n > 4:
                b._words[1] ^= 1 << 31
                b._words[2] = 0
            q, inverse = Matrix(1, n), Matrix(1, n)
            m.row_dots_cuda(n, width, a.address, b.address, q.address, inverse.address, *PLACE)
            want = np.sqrt(np.maximum((a.values * b.values).sum(1), 0))
            close(q.values, want[None], FLOAT, "row_dots")
            flipped = np.divide(1, want, out=np.zeros(n), where=want != 0)
            close(inverse.values, flipped[None], FLOAT, "row_dots inverse")
            assert n <= 4 or (q.values[0, 1:3] == 0).all()
            check(q, inverse)
    a, q = Matrix(2, 4, values=[[1, np.nan, 1, 1], [1, 1, 1, 1]]), Matrix(1, 2)
    m.row_dots_cuda(2, 4, a.address, a.address, q.address, 0, *PLACE)
    assert np.isnan(q.values[0, 0]) and q.values[0, 1] == 2


def shot_grads(m, rng: np.random.Generator) -> None:
    """The loss through a row is m·(unit row)/K − dot·log q."""
    for counts, width in BATCHES:
        labels, offsets = batch(counts)
        n = len(labels)
        root = rng.standard_normal((width, 3))  # of the matrix in q² = e·root·rootᵀ·e
        for shift in shifts():
            e = Matrix(n, width, shift=shift, values=rng.standard_normal((n, width)))
            r = Matrix(1, n, values=np.linalg.norm(e.values, axis=1))
            q = np.linalg.norm(e.values @ root, axis=1)
            inverse_q, dot = Matrix(1, n, values=1 / q), Matrix(1, n, values=rng.standard_normal(n))
            grad_mean = Matrix(len(counts), width, shift=shift,
                               values=rng.standard_normal((len(counts), width)))  # fmt: skip
            for lengthwise in (True, False):
                h = Matrix(n, width, shift=shift, values=e.values @ root @ root.T)
                m.shot_grads_cuda(
                    n, width, labels.ctypes.data, offsets.ctypes.data, e.address, h.address, r.address,
                    inverse_q.address, dot.address if lengthwise else 0, grad_mean.address, *PLACE,
                )  # fmt: skip

                used = lengthwise * dot.values[0]
                want = np.stack([
                    complex_step(
                        lambda v, m=grad_mean.values[y] / counts[y], d=used[i], w=root: (
                            m @ v / np.sqrt(v @ v) - d * 0.5 * np.log((v @ w) @ (v @ w))
                        ),
                        e.values[i],
                    )
                    for i, y in enumerate(labels)
                ])  # fmt: skip
                if width > 1 or lengthwise:  # a unit row of one value does not move
                    close(h.values, want, FLOAT, "shot_grads")
                check(h, e, grad_mean)
    zero, h, one = (
        Matrix(1, 8, values=np.zeros(8)),
        Matrix(1, 8, values=np.zeros(8)),
        Matrix(1, 1, values=1.0),
    )
    none, grad = Matrix(1, 1, values=0.0), Matrix(1, 8, values=np.ones(8))
    labels, offsets = batch([1])
    m.shot_grads_cuda(1, 8, labels.ctypes.data, offsets.ctypes.data, zero.address, h.address, none.address,
                      none.address, one.address, grad.address, *PLACE)  # fmt: skip
    assert (h.values == 0).all(), "a zero row has no gradient"


def unit_grad(m, rng: np.random.Generator) -> None:
    for n, width in ((1, 2), (5, 33), (9, 64), (4, 260)):
        for shift in shifts():
            x = rng.standard_normal((n, width))
            unit, norms = norm_rows(x)
            u = Matrix(n, width, shift=shift, values=unit)
            lengths = Matrix(1, n, values=norms)
            for accumulate in (False, True):
                grad = Matrix(n, width, shift=shift, values=rng.standard_normal((n, width)))
                into = Matrix(n, width, shift=shift, values=rng.standard_normal((n, width)))
                want = np.stack([
                    complex_step(lambda v, g=g: g @ v / np.sqrt(v @ v), row)
                    for row, g in zip(x, grad.values, strict=True)
                ])  # fmt: skip
                want += into.values if accumulate else 0
                out = into if accumulate else grad
                m.unit_grad_cuda(
                    n, width, grad.address, u.address, lengths.address, accumulate, out.address, *PLACE
                )
                close(out.values, want, FLOAT, "unit_grad")
                check(grad, into, u)
    zero, grad, norms = (
        Matrix(2, 4, values=np.zeros((2, 4))),
        Matrix(2, 4, values=1.0),
        Matrix(1, 2, values=0.0),
    )
    m.unit_grad_cuda(2, 4, grad.address, zero.address, norms.address, False, grad.address, *PLACE)
    assert (grad.values == 0).all()


def case_shots(m, rng: np.random.Generator) -> None:
    for part in (shot_norms, class_sums, row_dots, shot_grads, unit_grad):
        part(m, rng)


# -- losses ------------------------------------------------------------------------------------------


def cross_entropy(logits: np.ndarray, y: int) -> np.ndarray:
    top = logits.real.max(-1, keepdims=True)
    return np.log(np.exp(logits - top).sum(-1)) + top[..., 0] - logits[..., y]


def along(f: Callable[[complex], np.ndarray]) -> float:
    """The derivative of f at 1."""
    return float(np.imag(f(1 + 1e-30j)) / 1e-30)


def row_loss(m, rng: np.random.Generator) -> None:
    # A warp has a row up to 256 classes, a block beyond; both with and without vectors.
    shapes = ((1, 2), (5, 3), (19, 33), (10, 64), (3, 256), (3, 301), (2, 512))
    for n, classes in shapes if buffers.SANITIZED else (*shapes, (2, 2053)):
        labels = plain(rng.integers(classes, size=n), np.int64)
        scale = Matrix(1, n, values=1 + rng.random(n))
        add = Matrix(classes, classes, values=rng.standard_normal((classes, classes)))
        for gap, given in ((0, True), (3, True), (4, False)):
            x = Matrix(n, classes, gap=gap, values=rng.standard_normal((n, classes)))
            before, (loss, dot) = x.values, (Matrix(1, n), Matrix(1, n))
            m.row_loss_cuda(
                x.view, labels.ctypes.data, 0.3, scale.address if given else 0,
                add.address if given else 0, loss.address, dot.address if given else 0, *PLACE,
            )  # fmt: skip
            shift, factor = (add.values[labels], scale.values[0]) if given else (before * 0, np.ones(n))
            logits = (before + shift) * factor[:, None]
            each = list(zip(before, shift, factor, labels, strict=True))
            want = np.stack([
                0.3 * complex_step(lambda v, s=s, f=f, y=y: cross_entropy((v + s) * f, y), row)
                for row, s, f, y in each
            ])  # fmt: skip
            close(x.values, want, FLOAT, "row_loss grad")
            entropy = np.array([cross_entropy(row, y) for row, y in zip(logits, labels, strict=True)])
            close(loss.values, 0.3 * entropy[None], FLOAT, "row_loss")
            if given:  # Euler: Σ of a function's slopes times its arguments
                slopes = [along(lambda t, r=r, y=y: cross_entropy(r * t, y))
                          for r, y in zip(logits, labels, strict=True)]  # fmt: skip
                close(dot.values, 0.3 * np.array([slopes]), FLOAT, "row_loss dot")
            check(x, loss, dot)


def row_loss_edges(m, rng: np.random.Generator) -> None:
    one, loss, labels = Matrix(2, 1, values=[[3.0], [-7.0]]), Matrix(1, 2), plain([0, 0], np.int64)
    m.row_loss_cuda(one.view, labels.ctypes.data, 1.0, 0, 0, loss.address, 0, *PLACE)
    assert (one.values == 0).all() and (loss.values == 0).all(), "one class is certain"
    for classes in (40, 300):  # a warp's row, a block's row
        values = rng.standard_normal((5, classes))
        values[1, 7], values[2, 3], values[3, classes - 1] = np.nan, 2e4, np.inf
        x, loss, dot = Matrix(5, classes, values=values), Matrix(1, 5), Matrix(1, 5)
        scale, labels = Matrix(1, 5, values=[0, 1, 1, 1, 1]), plain([3] * 5, np.int64)
        m.row_loss_cuda(x.view, labels.ctypes.data, 2.0, scale.address, 0, loss.address, dot.address, *PLACE)
        assert (x.values[0] == 0).all() and dot.values[0, 0] == 0, "scale 0: nothing depends on the row"
        compare(loss.values[0, :1], np.array([2 * np.log(classes)]), "even_loss", "float32")
        assert np.isnan(x.values[1]).all() and np.isnan(loss.values[0, 1])
        assert (x.values[2] == 0).all() and loss.values[0, 2] == 0, "a certain row"
        assert np.isnan(x.values[3]).any() and np.isnan(loss.values[0, 3])
        alone, other = Matrix(1, classes, values=values[4]), Matrix(1, 1)
        m.row_loss_cuda(alone.view, labels.ctypes.data, 2.0, scale.address + 16, 0, other.address, 0, *PLACE)
        assert (alone.values[0] == x.values[4]).all() and other.values[0, 0] == loss.values[0, 4]
        m.row_loss_cuda((*x.view[:2], 0, *x.view[3:]), labels.ctypes.data, 2.0, 0, 0, loss.address, 0, *PLACE)


def bias_loss(m, rng: np.random.Generator) -> None:
    for classes, width in ((2, 1), (3, 33), (21, 8), (300, 5)):
        tau = Matrix(classes, width, values=rng.standard_normal((classes, width)))
        if classes > 3:
            tau._words[1] = 0
        norms = np.linalg.norm(tau.values, axis=1)
        lengths = Matrix(1, classes, values=norms)
        inverse = Matrix(1, classes, values=np.divide(1, norms, out=np.zeros(classes), where=norms != 0))
        grad = Matrix(classes, width, values=0.01 * rng.standard_normal((classes, width)))
        before, loss = grad.values, Matrix(1, classes)
        m.bias_loss_cuda(classes, width, 0.7, tau.address, lengths.address, inverse.address, grad.address,
                         loss.address, *PLACE)  # fmt: skip

        def penalty(v, c, norms=norms):
            mine = np.array(norms, complex)
            mine[c] = np.sqrt(v @ v)
            return 0.7 * ((mine - mine.mean()) ** 2).mean()

        want = np.zeros((classes, width))
        for c in np.flatnonzero(norms):
            want[c] = complex_step(lambda v, c=c: penalty(v, c), tau.values[c])
        close(grad.values, before + want, FLOAT, "bias_loss grad")
        assert (grad.values[norms == 0] == before[norms == 0]).all()
        close(loss.values, 0.7 * (norms - norms.mean())[None] ** 2 / classes, FLOAT, "bias_loss")
        check(grad, loss)


def total_loss(m, rng: np.random.Generator) -> None:
    for size in (0, 1, 33, 1023, 5000):
        parts = Matrix(1, max(size, 1), values=rng.random(max(size, 1)))
        loss, losses = Matrix(1, 1), Matrix(1, 4, values=7.0)
        step, now = plain([2], np.int64), plain([-1], np.int64)
        steps = step.ctypes.data, now.ctypes.data
        m.total_loss_cuda(size, parts.address, *steps, loss.address, losses.address, *PLACE)
        want = parts.values[:, :size].sum(keepdims=True)
        assert losses.values[0, [0, 1, 3]].tolist() == [7] * 3 and losses.values[0, 2] == loss.values[0, 0]
        assert step[0] == now[0] == 2
        if size:
            close(loss.values, want, FLOAT, "total_loss")
        else:
            assert loss.values[0, 0] == 0
        check(loss, losses)


def adamw_flat(m, rng: np.random.Generator) -> None:
    rate, b1, b2, eps, decay, steps = 0.02, 0.9, 0.999, 1e-8, 0.1, 4
    count = np.arange(1, steps + 1)
    rates = rate * count
    table = plain(
        np.stack([1 - rates * decay, rates / (1 - b1**count), np.sqrt(1 - b2**count)], 1), np.float32
    )
    for size in (1, 255, 256, 1031):
        p = Matrix(1, size, values=rng.standard_normal(size))
        first, second = (Matrix(1, size, values=0.0) for _ in range(2))
        value, m1, m2 = p.values, np.zeros((1, size)), np.zeros((1, size))
        step, now = plain([0], np.int64), plain([0], np.int64)
        for i in range(steps):
            g = Matrix(1, size, values=rng.standard_normal(size))
            now[0] = step[0]
            m.adamw_flat_cuda(size, p.address, g.address, first.address, second.address, table.ctypes.data,
                              now.ctypes.data, step.ctypes.data, b1, b2, eps, *PLACE)  # fmt: skip
            m1 = b1 * m1 + (1 - b1) * g.values
            m2 = b2 * m2 + (1 - b2) * g.values**2
            value = value * (1 - rates[i] * decay)
            value = value - rates[i] * (m1 / (1 - b1 ** (i + 1))) / (np.sqrt(m2 / (1 - b2 ** (i + 1))) + eps)
            assert step[0] == i + 1
        close(p.values, value, FLOAT, "adamw_flat")
        close(first.values, m1, FLOAT, "adamw_flat exp_avg")
        close(second.values, m2, FLOAT, "adamw_flat exp_avg_sq")
        check(p, first, second)


def case_losses(m, rng: np.random.Generator) -> None:
    for part in (row_loss, row_loss_edges, bias_loss, total_loss, adamw_flat):
        part(m, rng)

"""Every CUDA kernel against a float64 oracle: odd sizes, tails, misaligned rows, empty inputs.

Run as a program (see run_cases.py), so that a crash or a sanitizer's verdict is an exit status. The
oracles share nothing with the kernels: derivatives are taken by complex steps or explicit Jacobians.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from tests.cuda_emulation import buffers
from tests.cuda_emulation.buffers import BFLOAT, FLOAT, HALF, NAMES, NOTHING, Matrix, plain
from tests.support.comparer import compare

# The sanitizer looks for wrong addresses, which halves and bfloat16 share, and is slow.
STORAGES = (FLOAT, BFLOAT) if buffers.SANITIZED else (FLOAT, HALF, BFLOAT)
WORST: dict[str, float] = {}
PLACE = (0, 0)  # device, stream


def close(got: np.ndarray, want: np.ndarray, dtype: int, label: str) -> None:
    """tests/support/comparer.py, with the worst error of each label on record."""
    assert got.shape == want.shape, (label, got.shape, want.shape)
    if want.size == 0:
        return
    found = compare(got, want, "kernel", NAMES[dtype], label)
    key = f"{label}/{NAMES[dtype]}"
    WORST[key] = max(WORST.get(key, 0.0), found.beyond)


def complex_step(f: Callable[[np.ndarray], np.ndarray], x: np.ndarray) -> np.ndarray:
    """The Jacobian of f at x by complex steps: exact to rounding, no formula of a derivative."""
    step = 1e-30
    columns = [np.imag(f(x + 1j * step * e)) / step for e in np.eye(x.size).reshape(x.size, *x.shape)]
    return np.stack(columns, -1)


def layouts() -> Iterator[dict[str, int]]:
    yield {"shift": 1, "gap": 0}
    yield {"shift": 0, "gap": 0}
    if buffers.SANITIZED:
        return
    yield {"shift": 0, "gap": 3}
    yield {"shift": 0, "gap": 8}  # still aligned


def norm_rows(y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    norms = np.sqrt((y * y).sum(-1, keepdims=True))
    return np.divide(y, norms, out=np.zeros_like(y), where=norms != 0), norms[..., 0]


# -- rows --------------------------------------------------------------------------------------------


def case_normalize_rows(m, rng: np.random.Generator) -> None:
    for rows, cols in ((1, 1), (3, 33), (9, 128), (17, 70)):
        for dtype in STORAGES:
            for layout in layouts():
                x = Matrix(rows, cols, FLOAT, values=rng.standard_normal((rows, cols)), **layout)
                bias = Matrix(1, cols, FLOAT, values=rng.standard_normal(cols))
                out, norms = Matrix(rows, cols, dtype, **layout), Matrix(1, rows)
                m.normalize_rows_cuda(x.view, (*bias.view[:4], 0), True, 1.5, out.view, norms.address, *PLACE)
                unit, length = norm_rows(x.values + bias.values)
                close(out.values, 1.5 * unit, dtype, "normalize_rows")
                close(norms.values[0], length, FLOAT, "normalize_rows norms")
                out.check_guards()
                norms.check_guards()
    normalize_parts(m, rng)
    big = Matrix(2, 40, values=np.full((2, 40), 1e25))
    out = Matrix(2, 40)
    m.normalize_rows_cuda(big.view, NOTHING, True, 1.0, out.view, 0, *PLACE)
    close(out.values, np.full((2, 40), 40**-0.5), FLOAT, "normalize_rows")
    m.normalize_rows_cuda(big.view, NOTHING, False, 2e-25, out.view, 0, *PLACE)
    close(out.values, np.full((2, 40), 2.0), FLOAT, "normalize_rows")
    m.normalize_rows_cuda((*big.view[:2], 0, 40, 40), NOTHING, True, 1.0, out.view, 0, *PLACE)
    half = Matrix(2, 40, HALF, values=np.ones((2, 40)))
    try:  # a product that autocast made half: read as float32 it would be garbage, and too long
        m.normalize_rows_cuda(half.view, NOTHING, True, 1.0, out.view, 0, *PLACE)
    except ValueError as error:
        assert "must be float32 or float64" in str(error)
    else:
        raise AssertionError("a product of float16 was accepted")


def normalize_parts(m, rng: np.random.Generator) -> None:
    """A product whose two parts lie side by side."""
    for rows, cols in ((3, 33), (9, 64), (10, 264), (2, 1)):
        for dtype in STORAGES:
            for layout in layouts():
                x = Matrix(rows, 2 * cols, values=rng.standard_normal((rows, 2 * cols)), **layout)
                bias = Matrix(1, cols, values=rng.standard_normal(cols), shift=layout["shift"])
                out, norms = Matrix(rows, cols, dtype, **layout), Matrix(1, rows)
                whole = x.values[:, :cols] + x.values[:, cols:]
                for b, offset in ((NOTHING, 0), ((*bias.view[:4], 0), bias.values)):
                    m.normalize_rows_cuda(x.view, b, True, 0.5, out.view, norms.address, *PLACE)
                    unit, length = norm_rows(whole + offset)
                    close(out.values, 0.5 * unit, dtype, "normalize_rows of parts")
                    close(norms.values[0], length, FLOAT, "normalize_rows norms of parts")
                out.check_guards()
    for layout in layouts():  # each operand may be the one that is not aligned
        x = Matrix(3, 128, values=rng.standard_normal((3, 128)))
        bias = Matrix(1, 64, values=rng.standard_normal(64))
        shifted = Matrix(1, 64, values=bias.values, shift=1)
        whole = x.values[:, :64] + x.values[:, 64:] + bias.values
        for dtype in (FLOAT, BFLOAT):
            for b, to in ((bias, Matrix(3, 64, dtype, **layout)), (shifted, Matrix(3, 64, dtype))):
                m.normalize_rows_cuda(x.view, (*b.view[:4], 0), True, 1.0, to.view, 0, *PLACE)
                close(to.values, norm_rows(whole)[0], dtype, "normalize_rows of parts")
                to.check_guards()
    odd, out = Matrix(2, 7, values=np.ones((2, 7))), Matrix(2, 5)
    try:
        m.normalize_rows_cuda(odd.view, NOTHING, True, 1.0, out.view, 0, *PLACE)
    except ValueError as error:
        assert "or of float32 twice as many" in str(error)
    else:
        raise AssertionError("a product of one and a half parts was accepted")


def case_scale_rows(m, rng: np.random.Generator) -> None:
    """The power of two comes from frexp here, and from the exponent of a float there."""
    for rows, cols in ((1, 1), (3, 33), (9, 128), (17, 264), (2, 72)):
        for layout in layouts():
            for size in (1e-33, 1e-3, 1.0, 1e37):
                given = size * rng.standard_normal((rows, cols))
                x, out = (
                    Matrix(rows, cols, BFLOAT, values=given, **layout),
                    Matrix(rows, cols, HALF, **layout),
                )
                m.scale_rows_cuda(x.view, out.view, *PLACE)
                exponent = np.frexp(np.abs(x.values).max(1, keepdims=True))[1] - 1
                want = x.values * np.exp2(14.0 - exponent)
                assert (np.abs(want).max(1) >= 2**14).all() and (np.abs(want).max(1) < 2**15).all()
                # Exact but for what is so far below the row's largest that float16 ends before it.
                far = np.abs(want) < 2.0**-17
                assert (out.values == want)[~far].all() and not far.mean() > 0.01
                assert (np.abs(out.values - want) <= 2.0**-25).all()
                out.check_guards()
    for layout in layouts():  # either side may be the one that is not aligned
        for one, other in ((layout, {}), ({}, layout)):
            x, out = Matrix(3, 64, BFLOAT, values=np.ones((3, 64)), **one), Matrix(3, 64, HALF, **other)
            m.scale_rows_cuda(x.view, out.view, *PLACE)
            assert (out.values == 2.0**14).all()
            out.check_guards()
    x, out = Matrix(6, 40, BFLOAT, values=np.ones((6, 40))), Matrix(6, 40, HALF)
    x._words[0] = 0
    x._words[1, 7] = 0x7FC0  # NaN
    x._words[2, 7] = 0xFF80  # −∞
    x._words[3] = 1  # 2^-133, the smallest there is: its factor would not be a float32
    x._words[4, 1:] = 0x3380  # 2^-24
    x._words[5, 1:] = 0x2F80  # 2^-32
    m.scale_rows_cuda(x.view, out.view, *PLACE)
    got = out.values
    assert (got[0] == 0).all() and np.isnan(got[1, 7]) and np.isneginf(got[2, 7])
    assert (np.delete(got[1], 7) == 2.0**14).all() and (np.delete(got[2], 7) == 1).all()
    assert (got[3] == 2.0**-6).all() and (got[4] == [2.0**14, *[2.0**-10] * 39]).all()
    assert (got[5] == [2.0**14, *[2.0**-18] * 39]).all()
    m.scale_rows_cuda((*x.view[:2], 0, 40, 40), (*out.view[:2], 0, 40, 40), *PLACE)
    for a, b, told in (
        (out.view, x.view, "x must be bfloat16"), (x.view, (*out.view[:3], 39, 40), "have the shape of x")
    ):  # fmt: skip
        try:
            m.scale_rows_cuda(a, b, *PLACE)
        except ValueError as error:
            assert told in str(error)
        else:
            raise AssertionError(f"accepted, though {told}")


def project(m, x: Matrix, matrix: Matrix, out: Matrix, *, bias=None, normalize=True, scale=1.0) -> np.ndarray:
    """Runs it and checks that the tickets are back at zero; returns the norms."""
    norms, raw = Matrix(1, x.rows), Matrix(x.rows, out.cols)
    tickets = plain(np.zeros(m.project_normalize_cuda_tickets(x.rows)), np.int32)
    stride = () if bias is None else (0 if bias.rows == 1 else bias.stride,)
    results = []
    for _ in range(2):  # the second launch meets the tickets of the first
        if raw.rows:
            raw._words[...] = np.float32(np.nan).view(np.uint32)
        m.project_normalize_cuda(
            x.view, matrix.view, NOTHING if bias is None else (*bias.view[:4], *stride), normalize, scale,
            out.view, norms.address, raw.address, tickets.ctypes.data, *PLACE,
        )  # fmt: skip
        assert not tickets.any(), "tickets are not back at zero"
        results.append(out.values)
    assert np.array_equal(*results, equal_nan=True), "two launches differ"
    for buffer in (out, norms, raw):
        buffer.check_guards()
    return norms.values[0] if x.rows and normalize else np.zeros(0)


def case_project_normalize(m, rng: np.random.Generator) -> None:
    shapes = ((1, 64, 64), (2, 7, 5), (8, 33, 9), (9, 136, 34), (17, 40, 3), (3, 1, 1))
    for n, k, cols in shapes:
        for dtype in STORAGES:
            for stored in {FLOAT, dtype}:
                for layout in layouts():
                    x = Matrix(n, k, dtype, values=rng.standard_normal((n, k)) + 0.3, **layout)
                    matrix = Matrix(cols, k, stored, values=rng.standard_normal((cols, k)), **layout)
                    bias = Matrix(n if k % 2 else 1, cols, values=rng.standard_normal(cols))
                    out = Matrix(n, cols, dtype, **layout)
                    got = project(m, x, matrix, out, bias=bias, scale=0.7)
                    y = x.values @ matrix.values.T + bias.values
                    unit, norms = norm_rows(y)
                    close(out.values, 0.7 * unit, dtype, "project")
                    close(got, norms, FLOAT, "project norms")
                    project(m, x, matrix, out, normalize=False, scale=-2.0)
                    close(out.values, -2.0 * (x.values @ matrix.values.T), dtype, "project")
    # One row's zero, NaN and overflowing squares stay in that row.
    values = rng.standard_normal((11, 64))
    values[2], values[5, 7], values[9] = 0, np.nan, 1e24
    x, out = Matrix(11, 64, values=values), Matrix(11, 64)
    matrix = Matrix(64, 64, values=np.eye(64))
    project(m, x, matrix, out)
    assert (out.values[2] == 0).all() and np.isnan(out.values[5]).all()
    keep = [i for i in range(11) if i not in (2, 5)]
    close(out.values[keep], norm_rows(x.values[keep])[0], FLOAT, "project")
    alone = Matrix(1, 64)
    project(m, Matrix(1, 64, values=values[10]), matrix, alone)
    assert (alone.values[0] == out.values[10]).all(), "a row's result depends on its batch"
    project(m, Matrix(0, 64), matrix, Matrix(0, 64))


# -- towers ------------------------------------------------------------------------------------------


def norm_of(x, weight, bias, eps):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred * centred).mean(-1, keepdims=True) + eps) * weight + bias


def with_delta(m, x: Matrix, weight: Matrix, bias: Matrix, layout: dict, rng: np.random.Generator) -> None:
    """The residual sum in front: rounded to the storage type, and normed as it was rounded."""
    rows, width, dtype = x.rows, x.cols, x.dtype
    delta = Matrix(rows, width, dtype, values=rng.standard_normal((rows, width)), **layout)
    total, y = (Matrix(rows, width, dtype, **layout) for _ in range(2))
    mean, rstd = Matrix(1, rows), Matrix(1, rows)
    m.layer_norm_cuda(
        x.view, delta.view, total.view, weight.address, bias.address, 1e-5, y.view, mean.address,
        rstd.address, *PLACE,
    )  # fmt: skip
    close(total.values, x.values + delta.values, dtype, "layer_norm total")
    close(y.values, norm_of(total.values, weight.values, bias.values, 1e-5), dtype, "layer_norm of a total")
    close(mean.values[0], total.values.mean(-1), FLOAT, "layer_norm mean")
    close(rstd.values[0], 1 / np.sqrt(total.values.var(-1) + 1e-5), FLOAT, "layer_norm rstd")
    for buffer in (delta, total, y, mean, rstd):
        buffer.check_guards()


def case_layer_norm(m, rng: np.random.Generator) -> None:
    eps = 1e-5
    for rows, width in ((1, 8), (3, 33), (6, 64), (5, 136), (4, 513)):
        for dtype in STORAGES:
            for layout in layouts():
                x = Matrix(rows, width, dtype, values=3 + rng.standard_normal((rows, width)), **layout)
                weight = Matrix(1, width, values=1 + 0.3 * rng.standard_normal(width))
                bias = Matrix(1, width, values=rng.standard_normal(width))
                y, mean, rstd = Matrix(rows, width, dtype, **layout), Matrix(1, rows), Matrix(1, rows)
                m.layer_norm_cuda(
                    x.view, NOTHING, NOTHING, weight.address, bias.address, eps, y.view, mean.address,
                    rstd.address, *PLACE,
                )  # fmt: skip
                close(y.values, norm_of(x.values, weight.values, bias.values, eps), dtype, "layer_norm")
                close(mean.values[0], x.values.mean(-1), FLOAT, "layer_norm mean")
                close(rstd.values[0], 1 / np.sqrt(x.values.var(-1) + eps), FLOAT, "layer_norm rstd")
                with_delta(m, x, weight, bias, layout, rng)
                for with_residual in (False, True):
                    grad_y = Matrix(rows, width, dtype, values=rng.standard_normal((rows, width)), **layout)
                    residual = Matrix(rows, width, dtype, values=rng.standard_normal((rows, width)), **layout)
                    before = residual.values
                    # In place where there is a residual.
                    grad_x = residual if with_residual else Matrix(rows, width, dtype, **layout)
                    m.layer_norm_grad_cuda(
                        x.view, grad_y.view, weight.address, mean.address, rstd.address,
                        residual.view if with_residual else NOTHING, grad_x.view, *PLACE,
                    )  # fmt: skip
                    want = np.stack([
                        g @ complex_step(lambda r, w=weight: norm_of(r, w.values[0], 0, eps), r)
                        for r, g in zip(x.values, grad_y.values, strict=True)
                    ])  # fmt: skip
                    want += before if with_residual else 0
                    # The statistics that the kernel reads are float32 themselves.
                    close(grad_x.values, want, dtype, "layer_norm_grad")
                    grad_x.check_guards()
                for buffer in (y, mean, rstd):
                    buffer.check_guards()
    none = Matrix(0, 8)
    m.layer_norm_cuda(none.view, NOTHING, NOTHING, weight.address, bias.address, eps, none.view, 0, 0, *PLACE)


def activations(h: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """GELU, its tanh form, QuickGELU and their derivatives."""
    cdf = np.vectorize(lambda v: 0.5 * math.erfc(-v / math.sqrt(2)))(h)
    gelu = h * cdf, cdf + h * np.exp(-h * h / 2) / math.sqrt(2 * math.pi)

    def tanh_form(v):
        return 0.5 * v * (1 + np.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3)))

    def quick(v):
        return v * 0.5 * (1 + np.tanh(0.851 * v))

    step = 1e-30
    derived = [(f(h), np.imag(f(h + 1j * step)) / step) for f in (tanh_form, quick)]
    return [gelu, *derived]


def case_activation(m, rng: np.random.Generator) -> None:
    for rows, cols in ((1, 8), (3, 33), (5, 264), (2, 1)):
        for dtype in STORAGES:
            for layout in layouts():
                x = Matrix(rows, cols, dtype, values=3 * rng.standard_normal((rows, cols)), **layout)
                before = x.values
                for kind, (y, slope) in enumerate(activations(before)):
                    got = Matrix(rows, cols, dtype, **layout)
                    grad = Matrix(rows, cols, dtype, values=rng.standard_normal((rows, cols)), **layout)
                    upstream = grad.values
                    m.activate_cuda(kind, x.view, got.view, *PLACE)
                    m.activate_grad_cuda(kind, x.view, grad.view, *PLACE)
                    close(got.values, y, dtype, "activate")
                    close(grad.values, upstream * slope, dtype, "activate grad")
                    assert np.array_equal(x.values, before), "the argument is not as it was"
                    for buffer in (x, got, grad):
                        buffer.check_guards()
    far = Matrix(1, 6, values=[-1e30, -100, -12, 12, 100, 1e30])
    y = Matrix(1, 6)
    for kind in range(3):
        slope = Matrix(1, 6, values=np.ones(6))
        m.activate_cuda(kind, far.view, y.view, *PLACE)
        m.activate_grad_cuda(kind, far.view, slope.view, *PLACE)
        assert (y.values[0, [0, 1]] == 0).all() and (slope.values[0, [4, 5]] == 1).all(), (kind, y.values)
        for i in (3, 4, 5):
            close(y.values[0, i : i + 1], far.values[0, i : i + 1], FLOAT, "activate far out")
        assert (slope.values[0, :2] == 0).all(), (kind, slope.values)
    none = Matrix(0, 6)
    m.activate_cuda(0, none.view, none.view, *PLACE)
    m.activate_grad_cuda(0, none.view, none.view, *PLACE)


# -- descent -----------------------------------------------------------------------------------------


def case_cosine_loss(m, rng: np.random.Generator) -> None:
    for samples, width in ((1, 3), (5, 33), (6, 64), (9, 130)):
        for dtype in STORAGES:
            t = Matrix(samples, width, dtype, gap=1, values=rng.standard_normal((samples, width)) + 0.2)
            f = Matrix(samples, width, values=norm_rows(rng.standard_normal((samples, width)))[0], gap=2)
            grad, unit = Matrix(samples, width, dtype, gap=1), Matrix(samples, width)
            losses = Matrix(3, samples, values=np.full((3, samples), 7.0))
            step, now = plain([2], np.int64), plain([0], np.int64)
            m.cosine_loss_cuda(
                t.view, f.view, 0.25, step.ctypes.data, now.ctypes.data, losses.address, grad.view,
                unit.address, *PLACE,
            )  # fmt: skip
            hat = norm_rows(t.values)[0]
            want = np.stack([
                0.25 * complex_step(lambda r, fr=fr: 1 - (r @ fr) / np.sqrt(r @ r), r)
                for r, fr in zip(t.values, f.values, strict=True)
            ])  # fmt: skip
            close(grad.values, want, dtype, "cosine_loss grad")
            close(unit.values, hat, FLOAT, "cosine_loss unit")
            close(losses.values[2], 1 - (hat * f.values).sum(-1), FLOAT, "cosine_loss")
            assert (losses.values[:2] == 7).all() and now[0] == 2 and step[0] == 2
            for buffer in (grad, unit, losses):
                buffer.check_guards()
    t = Matrix(3, 8, values=np.stack([np.zeros(8), np.ones(8), np.full(8, np.nan)]))
    f = Matrix(3, 8, values=np.stack([np.full(8, 8**-0.5), np.zeros(8), np.full(8, 8**-0.5)]))
    grad, losses, step = Matrix(3, 8), Matrix(1, 3), plain([0], np.int64)
    m.cosine_loss_cuda(
        t.view, f.view, 1.0, step.ctypes.data, now.ctypes.data, losses.address, grad.view, 0, *PLACE
    )
    assert (grad.values[:2] == 0).all() and np.isnan(grad.values[2]).all(), "zero rows have no gradient"
    assert (losses.values[0, :2] == 1).all()


def case_adamw(m, rng: np.random.Generator) -> None:
    # samples, vectors, width, source, samples of the constants, grad_factor
    shapes = ((1, 1, 5, [0], 1, 1.0), (3, 1, 70, [-1, 0], 3, 0.25), (2, 3, 130, [2, -1, 0, 1, 1], 1, 8.0))
    lr, b1, b2, eps, decay = 0.02, 0.9, 0.999, 1e-8, 0.01
    for samples, vectors, width, slot_source, own, factor in shapes:
        for dtype in STORAGES:
            slots, size = len(slot_source), samples * vectors * width
            steps = 4
            count = np.arange(1, steps + 1)
            rates = plain(lr / (1 - b1**count), np.float32)
            corrections = plain(np.sqrt(1 - b2**count), np.float32)
            source = plain(slot_source, np.int32)
            base = Matrix(slots * own, width, values=rng.standard_normal((slots * own, width)))
            v = rng.standard_normal((samples, vectors, width))
            tokens = Matrix(1, size, values=v.reshape(1, -1))
            first, second = (Matrix(1, size, values=np.zeros((1, size))) for _ in range(2))
            x = Matrix(slots * samples, width, dtype, gap=3, values=np.zeros(width))
            m1, m2, v = np.zeros(v.shape), np.zeros(v.shape), tokens.values.reshape(v.shape)
            step, now = plain([0], np.int64), plain([0], np.int64)
            for i in range(steps):
                rows = rng.standard_normal((slots * samples, width))
                grad_x = Matrix(slots * samples, width, dtype, gap=1, values=rows)
                now[0] = step[0]
                m.adamw_cuda(
                    samples, vectors, width, slots, source.ctypes.data, grad_x.view, tokens.address,
                    first.address, second.address, rates.ctypes.data, corrections.ctypes.data,
                    now.ctypes.data, step.ctypes.data, lr, b1, b2, eps, decay, factor, base.address, own,
                    x.view, *PLACE,
                )  # fmt: skip
                g = np.zeros(v.shape)
                per_slot = grad_x.values.reshape(slots, samples, width)
                for slot, r in enumerate(slot_source):
                    if r >= 0:
                        g[:, r] += factor * per_slot[slot]
                m1 = b1 * m1 + (1 - b1) * g
                m2 = b2 * m2 + (1 - b2) * g * g
                v = v * (1 - lr * decay)
                v = v - lr * (m1 / (1 - b1 ** (i + 1))) / (np.sqrt(m2 / (1 - b2 ** (i + 1))) + eps)
                assert step[0] == i + 1
            close(tokens.values.reshape(v.shape), v, FLOAT, "adamw")
            close(first.values.reshape(v.shape), m1, FLOAT, "adamw exp_avg")
            close(second.values.reshape(v.shape), m2, FLOAT, "adamw exp_avg_sq")
            got = x.values.reshape(slots, samples, width)
            for slot, r in enumerate(slot_source):
                if r < 0:
                    assert (got[slot] == 0).all(), "a slot without a vector was written"
                else:
                    close(
                        got[slot],
                        base.values.reshape(slots, own, width)[slot] + v[:, r],
                        dtype,
                        "adamw input",
                    )
            for buffer in (tokens, first, second, x):
                buffer.check_guards()

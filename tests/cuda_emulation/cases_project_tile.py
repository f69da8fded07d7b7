"""project_tile on the emulated tensor cores: both parts of the matrix, all tails, and what it refuses."""

from __future__ import annotations

import numpy as np

from tests.cuda_emulation import buffers
from tests.cuda_emulation.buffers import FLOAT, HALF, NOTHING, Matrix, plain
from tests.cuda_emulation.cases import PLACE, STORAGES, close, layouts, norm_rows

# rows: one tile and its tail, two tiles; depth and columns: tails of a pack, of a tile, several tiles
SHAPES = ((33, 64, 64), (5, 33, 9), (32, 40, 130), (70, 17, 66), (1, 1, 1))


def project(m, x: Matrix, matrix: Matrix, out: Matrix, *, bias=None, normalize=True, scale=1.0, by=1.0):
    """Runs it twice on the same tickets; returns the norms."""
    norms, raw = Matrix(1, x.rows), Matrix(x.rows, out.cols)
    tickets = plain(np.zeros(m.project_tile_cuda_tickets(x.rows)), np.int32)
    stride = () if bias is None else (0 if bias.rows == 1 else bias.stride,)
    results = []
    for _ in range(2):
        if raw.rows:
            raw._words[...] = np.float32(np.nan).view(np.uint32)
        m.project_tile_cuda(
            x.view, matrix.view, by, NOTHING if bias is None else (*bias.view[:4], *stride), normalize,
            scale, out.view, norms.address, raw.address, tickets.ctypes.data, *PLACE,
        )  # fmt: skip
        assert not tickets.any(), "tickets are not back at zero"
        results.append(out.values)
    assert np.array_equal(*results, equal_nan=True), "two launches differ"
    for buffer in (out, norms, raw):
        buffer.check_guards()
    return norms.values[0]


def case_project_tile(m, rng: np.random.Generator) -> None:
    for n, k, cols in SHAPES[:2] if buffers.SANITIZED else SHAPES:
        for dtype in STORAGES:
            for layout in layouts():
                x = Matrix(n, k, dtype, values=rng.standard_normal((n, k)) + 0.3, **layout)
                matrix = Matrix(k, cols, values=rng.standard_normal((k, cols)), **layout)
                bias = Matrix(n if k % 2 else 1, cols, values=rng.standard_normal(cols))
                out = Matrix(n, cols, dtype, **layout)
                got = project(m, x, matrix, out, bias=bias, scale=0.7)
                unit, norms = norm_rows(x.values @ matrix.values + bias.values)
                close(out.values, 0.7 * unit, dtype, "project_tile")
                close(got, norms, FLOAT, "project_tile norms")
                project(m, x, matrix, out, normalize=False, scale=-2.0)
                close(out.values, -2.0 * (x.values @ matrix.values), dtype, "project_tile")
    stays_in_its_row(m, rng)
    keeps_small_numbers(m, rng)
    refuses(m)


def stays_in_its_row(m, rng: np.random.Generator) -> None:
    values = rng.standard_normal((40, 48))
    values[2], values[5, 7], values[33, 3] = 0, np.nan, np.inf
    matrix = Matrix(48, 64, values=rng.standard_normal((48, 64)))
    for dtype in STORAGES:
        x, out = Matrix(40, 48, dtype, values=values), Matrix(40, 64, dtype)
        project(m, x, matrix, out)
        assert (out.values[2] == 0).all() and np.isnan(out.values[[5, 33]]).all()
        keep = [i for i in range(40) if i not in (2, 5, 33)]
        close(out.values[keep], norm_rows(x.values[keep] @ matrix.values)[0], dtype, "project_tile")
        alone = Matrix(1, 64, dtype)
        project(m, Matrix(1, 48, dtype, values=values[38]), matrix, alone)
        assert (alone.values[0] == out.values[38]).all(), "a row's result depends on its batch"
    project(m, Matrix(0, 48), matrix, Matrix(0, 64))


def keeps_small_numbers(m, rng: np.random.Generator) -> None:
    """float16 alone would lose a matrix of 1e-7; the scale brings it into range."""
    x = Matrix(6, 40, HALF, values=rng.standard_normal((6, 40)))
    matrix = Matrix(40, 20, values=1e-7 * rng.standard_normal((40, 20)))
    out = Matrix(6, 20, HALF)
    norms = project(m, x, matrix, out, by=2.0**23)
    unit, want = norm_rows(x.values @ matrix.values)
    close(out.values, unit, HALF, "project_tile scaled")
    close(norms, want, FLOAT, "project_tile norms scaled")


def refuses(m) -> None:
    half = Matrix(4, 4, HALF, values=np.ones((4, 4)))
    try:
        m.project_tile_cuda(
            half.view, half.view, 1.0, NOTHING, False, 1.0, half.view, 0, 0, 0, *PLACE
        )  # fmt: skip
    except ValueError as error:
        assert "must be float32" in str(error)
    else:
        raise AssertionError("a matrix of float16 was accepted")

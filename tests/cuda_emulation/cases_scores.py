"""blend and topk against float64 oracles: ties, NaN, excluded rows, any number of classes and splits."""

from __future__ import annotations

import math

import numpy as np

from tests.cuda_emulation.buffers import FLOAT, Matrix, plain
from tests.cuda_emulation.cases import PLACE, STORAGES, close


def case_blend_logits(m, rng: np.random.Generator) -> None:
    # rows, width, classes, rank, gaps behind the rows. Warps: single values, vectors, more rows than a block
    # has warps, more values than a lane keeps, a rank or classes off the vectors. Then blocks likewise.
    shapes = ((1, 8, 1, 0, 1, 2), (3, 33, 5, 7, 1, 2), (4, 64, 300, 40, 1, 2), (2, 300, 257, 0, 1, 2),
              (9, 64, 100, 40, 8, 4), (17, 616, 8, 524, 0, 0), (3, 517, 5, 519, 0, 1), (3, 32, 8, 6, 0, 2),
              (3, 32, 6, 8, 0, 2), (2, 40, 1380, 12, 8, 4), (3, 33, 1370, 7, 1, 2), (2, 4112, 4, 0, 0, 0),
              (2, 17, 5, 4107, 1, 1), (2, 16, 4, 4108, 0, 0))  # fmt: skip
    for n, width, classes, rank, gap, z_gap in shapes:
        for dtype in STORAGES:
            x = Matrix(n, width, dtype, gap=gap, values=rng.standard_normal((n, width)))
            right = rng.standard_normal((width, 3 * classes + rank))
            right /= np.linalg.norm(right, axis=0)
            z = Matrix(n, 3 * classes + rank, gap=z_gap, values=x.values @ right)
            weights = Matrix(1, classes, values=np.exp(0.3 * rng.standard_normal(classes)))
            alpha, beta, gamma, lambdas = 3.0, 2.0, 5.0, (0.3, 0.6, 0.9)
            labels = plain(np.full(n, -7), np.int64)
            logits = Matrix(n, classes)
            for weighted in (True, False):
                m.blend_logits_cuda(
                    x.view, z.view, classes, rank, weights.address if weighted else 0, alpha, beta, gamma,
                    *lambdas, labels.ctypes.data, logits.address, *PLACE,
                )  # fmt: skip
                products = z.values
                length = np.linalg.norm(x.values, axis=1, keepdims=True)
                bridged = (
                    np.linalg.norm(products[:, 3 * classes :], axis=1, keepdims=True) if rank else length
                )
                z1, z2, z3 = (products[:, i * classes : (i + 1) * classes] for i in range(3))
                w = weights.values if weighted else 1.0
                shots = lambdas[1] * np.exp(-beta * (1 - z2 / length))
                shots = shots + lambdas[2] * np.exp(-gamma * (1 - z3 / bridged))
                want = lambdas[0] * np.exp(-alpha * (1 - z1 / length)) + w * shots
                close(logits.values, want, FLOAT, "blend")
                assert (labels == logits.values.argmax(1)).all(), "labels are not the argmax"
                logits.check_guards()
    # Ties go to the lower class; a row of NaN gets class 0; a zero row has z = 0.
    x, ones = Matrix(3, 8, values=np.ones((3, 8))), (1.0,) * 6
    for classes in (1401, 1400, 301, 300):
        z = Matrix(3, 3 * classes, values=np.zeros((3, 3 * classes)))
        z._words[1] = np.float32(np.nan).view(np.uint32)
        z._words[2, [70, 71, 140, 299]] = np.float32(1).view(np.uint32)
        labels = plain(np.full(3, -7), np.int64)
        m.blend_logits_cuda(x.view, z.view, classes, 0, 0, *ones, labels.ctypes.data, 0, *PLACE)
        assert labels.tolist() == [0, 0, 70], labels
    zero, logits = Matrix(1, 8, values=np.zeros((1, 8))), Matrix(1, 300)
    m.blend_logits_cuda(zero.view, (*z.view[:2], 1, *z.view[3:]), 300, 0, 0, 1.0, 2.0, 3.0, 1.0, 1.0, 1.0, 0,
                 logits.address, *PLACE)  # fmt: skip
    close(logits.values, np.full((1, 300), math.exp(-1) + math.exp(-2) + math.exp(-3)), FLOAT, "blend")
    m.blend_logits_cuda((*x.view[:2], 0, *x.view[3:]), z.view, 300, 0, 0, *ones, 0, 0, *PLACE)


def best_of(scores: np.ndarray, k: int, exclude: int) -> tuple[np.ndarray, np.ndarray]:
    """Score descending, equal scores by lower row, NaN with −infinity."""
    rank = np.where(np.isnan(scores), -np.inf, scores)
    order = [i for i in np.lexsort((np.arange(scores.size), -rank)) if i != exclude][:k]
    return scores[order], np.array(order)


def case_topk(m, rng: np.random.Generator) -> None:
    # rows, gallery, k, splits, chunk
    shapes = ((1, 1, 1, 1, 1), (3, 100, 10, 1, 100), (5, 333, 33, 3, 100), (2, 700, 128, 2, 250),
              (4, 65, 64, 5, 33), (7, 40, 39, 2, 40), (1, 6000, 10, 11, 5200))  # fmt: skip
    for n, g, k, splits, chunk in shapes:
        for kind in ("normal", "ties", "special", "ascending"):
            scores = rng.standard_normal((n, g)).astype(np.float32)
            if kind == "ties":
                scores = np.round(scores).astype(np.float32)
            if kind == "special":
                scores[:, ::3], scores[:, 1::7], scores[:, 2::11] = np.nan, -np.inf, np.inf
            if kind == "ascending":  # every score enters
                scores = np.sort(scores, 1)
            exclude = plain(np.where(np.arange(n) % 2 == 0, (np.arange(n) * 13) % g, -1), np.int64)
            if k >= g:
                exclude[:] = -1
            best = Matrix(n, splits * k)
            rows = Matrix(n, splits * k)  # raw words
            for first in range(0, g, chunk):
                part = scores[:, first : first + chunk]
                gap = -part.shape[1] % 4 if first == 0 else first % 3  # rows on 16-byte borders, or not
                view = Matrix(n, part.shape[1], gap=gap, values=part)
                view._words[...] = np.ascontiguousarray(part).view(np.uint32)
                m.topk_filter_cuda(
                    view.view, first, first == 0, k, splits, exclude.ctypes.data, best.address,
                    rows.address, *PLACE,
                )  # fmt: skip
            got, indices = Matrix(n, k), plain(np.full((n, k), -1), np.int64)
            m.topk_merge_cuda(
                n, k, splits, best.address, rows.address, got.address, indices.ctypes.data, *PLACE
            )
            for i in range(n):
                want, at = best_of(scores[i], k, int(exclude[i]))
                assert (indices[i] == at).all(), f"topk {kind} row {i}: {indices[i]}, oracle {at}"
                assert np.array_equal(got.values[i].astype(np.float32), want, equal_nan=True), kind
            for buffer in (best, rows, got):
                buffer.check_guards()
    try:
        m.topk_merge_cuda(1, 129, 1, 0, 0, 0, 0, *PLACE)
    except ValueError as error:
        assert "1..128" in str(error)
    else:
        raise AssertionError("k = 129 was accepted")

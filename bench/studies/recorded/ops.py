"""Every op with its gradients, in every dtype, natively and eagerly; and every sb.reference.* function."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import semobridge_ext as sb
from recorded.problems import DTYPES, case, codes, draw, gradients, name_of, projection, unit

F32, F64 = torch.float32, torch.float64


def _with_odd_rows(x: Tensor) -> Tensor:
    """One row of zeros, one with a NaN, one with an infinity, where there is room."""
    if len(x) > 5:
        x = x.clone()
        x[1], x[3, 0], x[4, 1] = 0, float("nan"), float("inf")
    return x


def _project(dtype: torch.dtype) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for n, k, m in ((1, 512, 512), (37, 45, 33), (1500, 96, 130)):
        x, matrix = draw(1, n, k, dtype=dtype), draw(2, k, m, dtype=dtype) / k**0.5
        bias, rows = draw(3, m, dtype=dtype), draw(4, n, m, dtype=dtype)
        op, size = sb.ops.project_normalize, f"{n}x{k}x{m}"
        found[size] = {
            "plain": op(x, matrix),
            "raw": op(x, matrix, normalize=False, scale=0.3),
            "bias": op(x, matrix, bias=bias, scale=2.0),
            "row bias": op(x, matrix, bias=rows),
            "odd rows": op(_with_odd_rows(x), matrix),
            "strided": op(x.T.contiguous().T, matrix.T.contiguous().T),
            "expanded": op(x[:1].expand(3, 2, k), matrix),
            "single row": op(x[0], matrix),
            "grad": gradients(op, {"x": x, "matrix": matrix, "bias": bias}, scale=1.5),
            "grad raw": gradients(op, {"x": x, "matrix": matrix, "bias": rows}, normalize=False),
        }
    found["empty"] = sb.ops.project_normalize(draw(1, 0, 8, dtype=dtype), draw(2, 8, 5, dtype=dtype))
    return found


def _support(dtype: torch.dtype) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for n, s, d, c in ((1, 300, 512, 11), (5, 41, 33, 7), (130, 2500, 64, 50)):
        q, keys, labels = unit(1, n, d, dtype=dtype), unit(2, s, d, dtype=dtype), codes(3, s, c)
        weights = (0.5 + torch.rand(s, generator=torch.Generator().manual_seed(4))).to(dtype)
        op = sb.support_logits
        found[f"{n}x{s}x{d}x{c}"] = {
            "plain": op(q, keys, labels, c + 1),  # the last class is empty
            "sharp": op(q, keys, labels, c, beta=5.5, weights=weights),
            "odd rows": op(_with_odd_rows(q), keys, labels, c),
            "in order": op(q, keys, labels.sort().values, c),
            "grad": gradients(op, {"queries": q, "keys": keys, "weights": weights}, labels=labels,
                              num_classes=c, beta=5.5),
        }  # fmt: skip
    return found


def _topk(dtype: torch.dtype) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for n, g, d, k in ((1, 50, 16, 5), (64, 5000, 64, 10), (3, 20000, 33, 300)):
        q, gallery = unit(1, n, d, dtype=dtype), unit(2, g, d, dtype=dtype)
        own = codes(3, n, g)
        own[0] = -1
        found[f"{n}x{g}x{d}x{k}"] = {
            "plain": sb.topk(q, gallery, k),
            "exclude": sb.topk(q, gallery, k, exclude=own),
            "ties": sb.topk((3 * q).round(), (3 * gallery).round(), k),
            "odd rows": sb.topk(_with_odd_rows(q), _with_odd_rows(gallery), k),
            "grad": gradients(lambda **t: sb.topk(**t, k=3).scores, {"queries": q, "gallery": gallery}),
        }
    found["mixed"] = sb.topk(unit(1, 9, 16), unit(2, 60, 16, dtype=dtype), 4)
    return found


def _metrics(dtype: torch.dtype) -> dict[str, Any]:
    x, y = unit(1, 900, 48, dtype=dtype), codes(2, 900, 30)
    q, labels = unit(3, 70, 48, dtype=dtype), codes(4, 70, 32)  # classes 30 and 31 have no answer
    tied = (2 * x).round(), y
    op = sb.retrieval_metrics
    return {
        "same set": op(x, x, y, y, same_set=True, per_query=True),
        "two sets": op(q, x, labels, y, recall_at=(1, 3, 100), per_query=True),
        "ties": op(tied[0], tied[0], y, y, same_set=True),
        "zero rows": op(
            q.index_fill(0, torch.tensor([1]), 0), x.index_fill(0, torch.tensor([1]), 0), labels, y
        ),
    }


def _in_every_dtype(function: Any) -> dict[str, Any]:
    return {name_of(dtype): function(dtype) for dtype in DTYPES}


@case
def project_normalize() -> Any:
    return _in_every_dtype(_project)


@case
def support_logits() -> Any:
    return _in_every_dtype(_support)


@case
def topk() -> Any:
    return _in_every_dtype(_topk)


@case
def retrieval_metrics() -> Any:
    return _in_every_dtype(_metrics)


@case
def eager() -> Any:
    with sb.backend("eager"):
        found = {f.__name__: _in_every_dtype(f) for f in (_project, _support, _topk)}
        return {**found, "_metrics": _metrics(F32)}  # one query at a time


@case
def transforms() -> Any:
    """Behind torch.func and under autocast, where calls take other paths."""
    x, m, keys, labels = draw(1, 9, 16), draw(2, 16, 12), unit(3, 40, 16), codes(4, 40, 5)
    b = sb.Bridge(projection(16, 16, 12))
    functions = {
        "project_normalize": lambda v: sb.ops.project_normalize(v, m),
        "support_logits": lambda v: sb.support_logits(v, keys, labels, 5),
        "topk": lambda v: sb.topk(v, keys, 3).scores,
        "bridge": lambda v: sb.bridge(v, bridge=b),
    }
    found: dict[str, Any] = {}
    for name, function in functions.items():
        found[name] = {
            "func.grad": torch.func.grad(lambda v, f=function: (f(v) ** 3).sum())(x),
            "vmap": torch.func.vmap(function)(x.reshape(3, 3, 16)),
        }
        with torch.autocast("cpu", torch.bfloat16):
            found[name]["autocast"] = function(x)
    return found


@case
def prepared_projection() -> Any:
    found: dict[str, Any] = {}
    for compute in (F32, F64):
        first, second = draw(1, 45, 20, dtype=compute), draw(2, 20, 45, dtype=compute)
        make = sb.ops.Projection
        plans = {
            "one": make(first, compute=compute, scale=3.0),
            "one raw": make(first, compute=compute, normalize=False, scale=0.5),
            "two": make(first, second, compute=compute, normalize_first=True, scale_first=2.0),
            "two raw": make(first, second, compute=compute, normalize_first=True, normalize=False),
            "residual": make(first, second, compute=compute, residual=True),
        }
        for rows in (1, 6, 300):
            x = draw(3, rows, 45, dtype=compute)
            for name, plan in plans.items():
                norms = torch.zeros(rows, dtype=compute)
                out = torch.zeros(rows, plan.cols, dtype=x.dtype)
                found[f"{name_of(compute)} {name} {rows}"] = plan(x, norms=norms, out=out), out, norms
            for bias in (draw(4, 20, dtype=compute), draw(5, rows, 20, dtype=compute)):
                found[f"{name_of(compute)} bias {rows} {bias.dim()}"] = plans["one"](x, bias=bias)
        for dtype in DTYPES if compute is F32 else ():
            if dtype is not F64:  # float64 rows need float64 plans
                found[f"rows of {name_of(dtype)}"] = plans["two"](draw(6, 7, 45, dtype=dtype))
    return found


@case
def support_set() -> Any:
    found: dict[str, Any] = {}
    for dtype in DTYPES:
        for weighted in (False, True):
            keys, labels = unit(1, 500, 40, dtype=dtype), codes(2, 500, 9)
            weights = unit(3, 1, 500)[0].abs() if weighted else None
            q = unit(4, 33, 40)

            def part(a: int, b: int, keys=keys, labels=labels, weights=weights) -> tuple:
                return keys[a:b], labels[a:b], None if weights is None else weights[a:b]

            k, y, w = part(0, 200)
            support = sb.SupportSet(k, y, 9, weights=w)
            for a, b in ((200, 203), (203, 420), (420, 500)):
                support.append(*part(a, b))
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "support"
                support.save(path)
                loaded = sb.SupportSet.load(path)
                found[f"{name_of(dtype)} {weighted}"] = {
                    "logits": support.logits(q, beta=3.0),
                    "state": [support.keys, support.labels, support.weights],
                    "loaded": [loaded.keys.clone(), loaded.labels.clone(), loaded.logits(q, beta=3.0)],
                    "grad": gradients(lambda queries, s=support: s.logits(queries), {"queries": q}),
                }
    return found


@case
def revisited_metrics() -> Any:
    def lists(seed: int) -> dict[str, list[list[int]]]:
        order = torch.randperm(300, generator=torch.Generator().manual_seed(seed)).tolist()
        return {"easy": order[:4], "hard": order[4:11], "junk": order[11:20]}

    rows = [lists(seed) for seed in range(12)]
    rows[3]["easy"] = []
    split = [[row[name] for row in rows] for name in ("easy", "hard", "junk")]
    q, g = unit(1, 12, 24), unit(2, 300, 24)
    return {
        "plain": sb.revisited_metrics(q, g, *split, per_query=True),
        "ties": sb.revisited_metrics((2 * q).round(), (2 * g).round(), *split, precision_at=(1, 7)),
        "half": sb.revisited_metrics(q.half(), g.half(), *split),
    }


@case
def references() -> Any:
    """All of sb.reference but the inversions, which recorded/inversion.py runs."""
    found, ref = {}, sb.reference
    for dtype in (F32, F64):
        x, m, q, keys = (draw(i, 20, 16, dtype=dtype) for i in range(4))
        labels, w = codes(5, 20, 6), projection(16, 16, 12).to(dtype)
        proto, text = ref.prototypes(x, labels, 6), unit(6, 6, 16, dtype=dtype)
        z = [draw(10 + i, 9, 6, dtype=dtype) / 5 for i in range(3)]
        weights = ref.class_weights(proto, text, s=0.7)
        found[name_of(dtype)] = {
            "project_normalize": ref.project_normalize(x, m[:16], bias=m[17], scale=2.0),
            "scale_rows": ref.scale_rows(x, 3.0),
            "support_logits": ref.support_logits(q, keys, labels, 6, beta=2.0, weights=x[:, 0]),
            "topk": ref.topk(q, keys, 4, exclude=torch.arange(20)),
            "retrieval_metrics": ref.retrieval_metrics(q, keys, labels, labels, same_set=True),
            "pinv": ref.pinv(w),
            "bridge": ref.bridge(x, w, class_bias=m[18], text_length=2.0, normalize=False),
            "prototypes": proto,
            "class_weights": weights,
            "blend_logits": ref.blend_logits(*z, weights=weights, alpha=2.0, lambdas=(1.0, 0.5, 0.2)),
        }
    return found

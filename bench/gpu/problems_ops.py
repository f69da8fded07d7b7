"""The operators' problems of measure.py."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from problems import (
    BOUNDS,
    Lazy,
    Prepared,
    Problem,
    Sizes,
    as_is,
    by_backend,
    compile_anew,
    compiled,
    draw,
    name_of,
    unit,
)
from timing import worst_row
from torch import Tensor

import semobridge_ext as sb
from semobridge_ext._ops.blend_logits.op import BlendOperand
from semobridge_ext._ops.blend_logits.spec import BlendParams

BF16, F32 = torch.bfloat16, torch.float32
CHECKED = 64  # rows held against float64
BETA = 5.5


def problems(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Iterator[Lazy]:
    for n in sizes.rows:
        yield partial(bridge, sizes, device, n, dtype)
    for n in sizes.searches:
        yield partial(topk, sizes, device, n, dtype)
    for s in sizes.supports[: None if dtype is BF16 else 1]:
        yield partial(support_logits, sizes, device, s, dtype)
    yield partial(predict, sizes, device, sizes.rows[1], dtype)
    yield partial(symmetric_kl, sizes, device, dtype)


def unit64(x: Tensor) -> Tensor:
    x = x.double()
    return x / x.square().sum(-1, keepdim=True).sqrt()


def folded(x: Tensor, projector: Tensor) -> Tensor:  # [N, D], [D, D]
    return F.normalize(x @ projector, dim=-1)


def bridge(sizes: Sizes, device: torch.device, n: int, dtype: torch.dtype) -> Problem:
    d = sizes.width
    w = draw(torch.device("cpu"), 0, d, d) * 1.5 / d**0.5  # singular values from 0 to 3: some are cut off
    b, x = sb.Bridge(w).to(device), (draw(device, n, n, d) + 0.3).to(dtype)
    projector = (torch.linalg.pinv(w.double(), atol=0.3, rtol=0.0) @ w.double()).to(device)
    own, out = projector.to(dtype), torch.empty_like(x)
    want = unit64(x[:CHECKED].double() @ projector)
    members = {
        "plain": as_is(folded, x, own),
        **by_backend(partial(sb.bridge, x, bridge=b)),
        "compile": compiled(folded, x, own),
        "mm": as_is(torch.mm, x, own, out=out),
    }
    return Problem(
        f"bridge {n}×{d} {name_of(dtype)}", members,
        lambda got: worst_row(got[:CHECKED], want), BOUNDS[dtype],
        float((2 * n * d + d * d) * dtype.itemsize), 2.0 * n * d * d, dtype is BF16,
    )  # fmt: skip


def plain_support(q: Tensor, k: Tensor, values: Tensor) -> Tensor:  # [N, D], [S, D], [S, C]
    return (BETA * (q @ k.T - 1)).exp() @ values


def support_logits(sizes: Sizes, device: torch.device, s: int, dtype: torch.dtype) -> Problem:
    n, d, c = sizes.queries, sizes.width, sizes.classes
    q, k = unit(device, 1, n, d, dtype=dtype), unit(device, 2, s, d, dtype=dtype)
    labels = torch.arange(s, device=device) % c  # a support set as it was read, not in class order
    held = sb.SupportSet(k, labels, c)
    want = torch.zeros(min(CHECKED, n), c, dtype=torch.float64, device=device)
    for rows, own in zip(k.split(1 << 16), labels.split(1 << 16), strict=True):
        terms = (BETA * (q[:CHECKED].double() @ rows.double().T - 1)).exp()
        want.index_add_(1, own, terms)

    def values() -> Tensor:
        return torch.zeros(s, c, dtype=dtype, device=device).scatter_(1, labels.unsqueeze(1), 1)

    members = {
        "plain": lambda: as_is(plain_support, q, k, values())(),
        **by_backend(partial(held.logits, q, beta=BETA)),
        "compile": lambda: compiled(plain_support, q, k, values())(),
        "mm": as_is(torch.mm, q, k.T),
    }
    return Problem(
        f"support_logits {n}×{s} {name_of(dtype)}", members,
        lambda got: worst_row(got[:CHECKED], want), BOUNDS[dtype],
        float((n + s) * d * dtype.itemsize + n * c * dtype.itemsize), 2.0 * n * s * d, dtype is BF16,
    )  # fmt: skip


def plain_topk(q: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:  # [N, D], [G, D]
    return torch.topk(q @ rows.T, 10)


def cuvs_topk(q: Tensor, rows: Tensor) -> Prepared:
    """RAPIDS cuVS's exact search, where it is installed."""
    if importlib.util.find_spec("cuvs") is None:
        raise NotImplementedError("cuVS is not installed")
    brute_force = importlib.import_module("cuvs.neighbors.brute_force")
    index = brute_force.build(rows, metric="inner_product")

    def search() -> tuple[Tensor, Tensor]:
        scores, indices = brute_force.search(index, q, 10)
        return torch.as_tensor(scores, device=q.device), torch.as_tensor(indices, device=q.device)

    return Prepared(search)


def topk(sizes: Sizes, device: torch.device, n: int, dtype: torch.dtype) -> Problem:
    d, g = sizes.width, sizes.gallery
    q, rows = unit(device, 3, n, d, dtype=dtype), unit(device, 4, g, d, dtype=dtype)
    parts = [q[:CHECKED].double() @ part.double().T for part in rows.split(1 << 16)]
    want = torch.cat(parts, dim=1).topk(10).values
    del parts

    def check(got: Any) -> float:
        """Of the scores that the rows found really have: a wrong row shows, a tie does not."""
        found = rows[got[1][:CHECKED].long().flatten()].double().view(len(want), 10, d)
        return worst_row((found @ q[:CHECKED].double().unsqueeze(2)).squeeze(2), want)

    members = {
        "plain": as_is(plain_topk, q, rows),
        **by_backend(partial(sb.topk, q, rows, 10)),
        "library": partial(cuvs_topk, q, rows),
        "compile": compiled(plain_topk, q, rows),
        "mm": as_is(torch.mm, q, rows.T),
    }
    return Problem(
        f"topk 10 of {n}×{g} {name_of(dtype)}", members, check, BOUNDS[dtype],
        float((n + g) * d * dtype.itemsize + 12 * n * 10), 2.0 * n * g * d, dtype is BF16,
    )  # fmt: skip


def plain_logits(x: Tensor, blocks: tuple[Tensor, Tensor, Tensor], projector: Tensor) -> Tensor:
    u = F.normalize(x, dim=-1)
    cosines = (u @ blocks[0].T, u @ blocks[1].T, folded(x, projector) @ blocks[2].T)
    z1, z2, z3 = ((z - 1).exp() for z in cosines)
    return z1 + z2 + z3


def plain_predict(x: Tensor, blocks: tuple[Tensor, Tensor, Tensor], projector: Tensor) -> Tensor:
    return plain_logits(x, blocks, projector).argmax(dim=1)


def predict(sizes: Sizes, device: torch.device, n: int, dtype: torch.dtype) -> Problem:
    """The classifier's labels; what is held against float64 is its logits."""
    d, c = sizes.width, sizes.classes
    x = (draw(device, 5, n, d) + 0.3).to(dtype)
    blocks = tuple(unit64(draw(device, seed, c, d)) for seed in (6, 7, 8))
    projector = torch.eye(d, dtype=torch.float64, device=device)
    projector += 0.2 * draw(device, 9, d, d).double() / d**0.5
    operand = BlendOperand(*blocks, torch.zeros(c, dtype=torch.float64, device=device), projector)
    rows = x[:CHECKED].double()
    u, bridged = unit64(rows), unit64(rows @ projector)
    want = sum((z - 1).exp() for z in (u @ blocks[0].T, u @ blocks[1].T, bridged @ blocks[2].T))
    own, params = (x, tuple(b.to(dtype) for b in blocks), projector.to(dtype)), BlendParams()
    plain, logits = partial(plain_predict, *own), partial(plain_logits, *own)
    members = {
        "plain": lambda: Prepared(plain, logits),
        **by_backend(partial(operand.labels, x, params), partial(operand.logits, x, params)),
        "compile": lambda: Prepared(partial(compile_anew(plain_predict), *own), logits),
    }
    return Problem(
        f"predict {n}×{d}, C = {c} {name_of(dtype)}", members,
        lambda got: worst_row(got[:CHECKED], want), BOUNDS[dtype],
        float((n + 3 * c + d) * d * dtype.itemsize + 8 * n), 2.0 * n * d * (3 * c + d), dtype is BF16,
    )  # fmt: skip


def plain_kl(a: Tensor, b: Tensor) -> Tensor:
    p, q = F.log_softmax(a.float(), 1), F.log_softmax(b.float(), 1)
    return (0.5 * (p.exp() - q.exp()) * (p - q)).sum(1).mean()


def symmetric_kl(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Problem:
    n, c = sizes.pairs, sizes.classes
    a, b = (draw(device, seed, n, c, dtype=dtype) for seed in (10, 11))
    p, q = (torch.log_softmax(t.double(), 1) for t in (a, b))
    want = (0.5 * ((p.exp() - q.exp()) * (p - q)).sum(1)).mean().reshape(1, 1)
    members = {
        "plain": as_is(plain_kl, a, b),
        **by_backend(partial(sb.ops.symmetric_kl, a, b)),
        "compile": compiled(plain_kl, a, b),
    }
    return Problem(
        f"symmetric_kl {n}×{c} {name_of(dtype)}", members,
        lambda got: worst_row(got.reshape(1, 1), want), BOUNDS[F32],
        float(2 * n * c * dtype.itemsize), 0.0, False,
    )  # fmt: skip

"""`python calls.py SECONDS SEED`: random calls of the public operators, in odd layouts, some of them wrong.

Made to run on a native module under AddressSanitizer and UndefinedBehaviorSanitizer, which end the process at
the first wrong address. Without them it still shows that a call either gives a tensor of the right shape, the
same twice, or raises one of the package's errors. The last line is the number of calls by operator as JSON.
"""

from __future__ import annotations

import json
import math
import random
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import semobridge_ext as sb
from semobridge_ext._ops.count_correct.cache_grid import CacheGrid
from semobridge_ext._ops.quantize_rows.op import quantize_rows
from semobridge_ext._ops.topk import cpu as topk_cpu
from semobridge_ext._ops.tree_attention.op import tree_attention, tree_attention_bwd
from semobridge_ext._ops.tree_attention.spec import Paths

ERRORS = (TypeError, ValueError, NotImplementedError)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SIZES = (0, 1, 2, 3, 5, 8, 13, 14, 15, 16, 17, 31, 33, 56, 57, 64, 65, 100, 129)
WRONG = 0.1  # share of arguments that are spoilt


class Source:
    """Arguments drawn from one seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)

    def size(self, least: int = 0) -> int:
        return max(least, self.random.choice(SIZES))

    def dtype(self) -> torch.dtype:
        return self.random.choice(DTYPES)

    def wrong(self) -> bool:
        return self.random.random() < WRONG

    def rows(self, n: int, d: int, dtype: torch.dtype) -> Tensor:  # [n, d]
        """In one of many layouts; now and then with odd values, or of another shape."""
        if self.wrong():
            n, d = max(0, n + self.random.choice((-1, 1, 7))), max(0, d + self.random.choice((-1, 0, 1)))
        x = torch.randn(n, d, generator=self.generator, dtype=torch.float64)
        kind = self.random.randrange(8)
        if x.numel():
            if kind == 0:
                x[self.random.randrange(n), self.random.randrange(d)] = self.random.choice(
                    (math.nan, math.inf, -math.inf, 1e30, 1e-40)
                )
            elif kind == 1:
                x[self.random.randrange(n)] = 0
        return self.laid_out(x.to(dtype))

    def laid_out(self, x: Tensor) -> Tensor:
        n, d = x.shape
        layout = self.random.randrange(7)
        if layout == 1:  # rows apart
            wide = torch.empty(n, d + self.random.randrange(1, 9), dtype=x.dtype)
            wide[:, :d] = x
            return wide[:, :d]
        if layout == 2:  # columns apart
            return x.T.contiguous().T
        if layout == 3:  # at an odd element
            flat = torch.empty(x.numel() + 3, dtype=x.dtype)[3:]
            return flat.copy_(x.flatten()).view(n, d)
        if layout == 4 and x.numel():  # at an odd byte
            raw = bytearray(1 + x.numel() * x.element_size())
            odd = torch.frombuffer(raw, dtype=torch.uint8)[1:]
            odd.copy_(x.contiguous().flatten().view(torch.uint8))
            return torch.frombuffer(raw, dtype=x.dtype, offset=1).view(n, d)
        if layout == 5:  # every second row, backwards is not a view
            twice = torch.empty(2 * n, d, dtype=x.dtype)
            twice[::2] = x
            return twice[::2]
        if layout == 6 and n:  # one row for all
            return x[:1].expand(n, d)
        return x

    def labels(self, n: int, classes: int) -> Tensor:
        y = torch.randint(0, max(classes, 1), (n,), generator=self.generator)
        if self.wrong() and n:
            y[self.random.randrange(n)] = self.random.choice((-1, classes, 2**40, -(2**63)))
        if self.random.randrange(3) == 0:
            twice = torch.zeros(2 * n, dtype=torch.int64)
            twice[::2] = y
            return twice[::2]
        return y


def project_normalize(s: Source) -> Any:
    n, k, m, dtype = s.size(), s.size(1), s.size(1), s.dtype()
    x, matrix = s.rows(n, k, dtype), s.rows(k, m, dtype)
    bias = s.random.choice((None, s.rows(1, m, dtype).flatten(), s.rows(n, m, dtype)))
    options = {"bias": bias, "scale": s.random.choice((1.0, -2.5)), "normalize": s.random.random() < 0.7}
    if s.random.random() < 0.3:
        x = x.detach().requires_grad_()
        out = sb.ops.project_normalize(x, matrix, **options)
        out.double().nansum().backward()
        return out.detach(), x.grad
    return sb.ops.project_normalize(x, matrix, **options)


def projection(s: Source) -> Any:
    n, k, m = s.size(), s.size(1), s.size(1)
    second = s.rows(m, k, torch.float32) if s.random.random() < 0.5 else None
    plan = sb.ops.Projection(s.rows(k, m, s.dtype()), second, residual=second is not None)
    return plan(s.rows(n, k, s.dtype()))


def bridge(s: Source) -> Any:
    t, d = s.size(2), s.size(2)
    b = sb.Bridge(torch.randn(t, d, generator=s.generator), atol=s.random.choice((0.3, 1e-3)))
    return b(s.rows(s.size(), d, s.dtype()), project=s.random.random() < 0.7)


def linear_map(s: Source) -> Any:
    k, m = s.size(1), s.size(1)
    offset = s.random.choice((None, torch.randn(m, generator=s.generator)))
    return sb.LinearMap(torch.randn(k, m, generator=s.generator), offset)(s.rows(s.size(), k, s.dtype()))


def support_logits(s: Source) -> Any:
    n, keys, d, classes = s.size(), s.size() * 5, s.size(1), s.size(1)
    weights = torch.rand(keys, generator=s.generator) if s.random.random() < 0.5 else None
    x, k = s.rows(n, d, s.dtype()), s.rows(keys, d, s.dtype())
    y = s.labels(keys, classes)
    if s.random.random() < 0.3:
        x = x.detach().requires_grad_()
        out = sb.support_logits(x, k, y, classes, beta=5.5, weights=weights)
        out.double().nansum().backward()
        return out.detach(), x.grad
    return sb.support_logits(x, k, y, classes, beta=5.5, weights=weights)


def support_set(s: Source) -> Any:
    d, classes, dtype = s.size(1), s.size(1), s.dtype()
    first, more = s.size(1), s.size(1)
    held = sb.SupportSet(s.rows(first, d, dtype), s.labels(first, classes), classes)
    held.append(s.rows(more, d, dtype), s.labels(more, classes))
    return held.logits(s.rows(s.size(), d, s.dtype()))


def topk(s: Source) -> Any:
    n, g, d = s.size(), s.size() * 7, s.size(1)
    exclude = s.random.choice((None, s.labels(n, g)))
    queries, gallery = s.rows(n, d, s.dtype()), s.rows(g, d, s.dtype())
    found = sb.topk(queries, gallery, s.random.randrange(0, 20), exclude=exclude)
    if found.indices.numel():
        assert bool(((found.indices >= 0) & (found.indices < len(gallery))).all())
    return tuple(found)


def gallery(s: Source) -> Any:
    g, d, dtype = s.size(1) * 40, s.size(1), s.dtype()
    rows = s.rows(g, d, dtype)
    held = sb.Gallery(rows, normalize=s.random.random() < 0.3)
    if s.random.random() < 0.5:
        held.add(s.rows(s.size(1), d, s.dtype()))
    n, k = s.size(), s.random.randrange(0, 20)
    allow = s.random.choice((None, range(g // 3, g), torch.rand(len(held), generator=s.generator) < 0.7))
    exclude = s.random.choice((None, s.labels(n, len(held))))
    found = held.topk(s.rows(n, d, s.dtype()), k, exclude=exclude, allow=allow)
    if found.indices.numel():
        assert bool(((found.indices >= 0) & (found.indices < len(held))).all())
    return tuple(found)


def filtered_topk(s: Source) -> Any:
    g, d, n = s.size(1) * 40, s.size(1), s.size()
    dtype, of_queries = (s.random.choice((torch.float32, torch.bfloat16, torch.float16)) for _ in range(2))
    rows, queries, k = s.rows(g, d, dtype), s.rows(n, d, of_queries), s.random.randrange(0, min(20, g))
    coded = s.random.choice((None, quantize_rows(rows)))
    scores, indices, _ = topk_cpu.topk_filtered(queries, rows, k, None, coded=coded)
    return scores, indices


def retrieval_metrics(s: Source) -> Any:
    n, g, d, classes = s.size(1), s.size(2), s.size(1), s.random.randrange(1, 5)
    dtype = s.dtype()
    if s.random.random() < 0.5:
        x, y = s.rows(g, d, dtype), s.labels(g, classes)
        found = sb.retrieval_metrics(x, x, y, y, same_set=s.random.random() < 0.7)
    else:
        found = sb.retrieval_metrics(
            s.rows(n, d, dtype), s.rows(g, d, dtype), s.labels(n, classes), s.labels(g, classes)
        )
    return torch.tensor([float(v) for v in found.values()], dtype=torch.float64)


def relevant_items(s: Source) -> Any:
    """As pairs: some queries without any, some with many; under same_set their own rows too."""
    n, g, d, dtype = s.size(1), s.size(2), s.size(1), s.dtype()
    same_set = s.random.random() < 0.5
    gallery = s.rows(g, d, dtype)
    query = gallery if same_set else s.rows(n, d, dtype)
    count = s.random.randrange(1, 40)
    pairs = torch.stack([s.labels(count, len(query)), s.labels(count, g)], dim=1)
    found = sb.retrieval_metrics(query, gallery, relevant=pairs, same_set=same_set)
    return torch.tensor([float(v) for v in found.values()], dtype=torch.float64)


def symmetric_kl(s: Source) -> Any:
    n, k, dtype = s.size(), s.size(1), s.dtype()
    a, b = s.rows(n, k, dtype).detach().requires_grad_(), s.rows(n, k, dtype)
    out = sb.ops.symmetric_kl(a, b, temperature=s.random.choice((1.0, 0.3)))
    out.backward()
    return out.detach(), a.grad


def attention(s: Source) -> Any:
    """Called from the text tower alone, with rows that it has made: only the lists may be wrong."""
    n, m, p, length, heads = (s.size(1) for _ in range(5))
    width, dtype = heads * s.random.randrange(1, 20), s.random.choice((torch.float32, torch.float64))
    q, kv = (torch.randn(rows, 2 * width, generator=s.generator, dtype=dtype) for rows in (n, m))
    nodes = torch.randint(m + s.wrong(), (p, length), dtype=torch.int32, generator=s.generator)
    path_of = torch.randint(p, (n,), dtype=torch.int32, generator=s.generator)
    counts = torch.randint(1, length + 1, (n,), dtype=torch.int32, generator=s.generator)
    paths, rows = Paths(nodes, path_of, counts), (q[:, :width], *kv.chunk(2, dim=1))
    out = tree_attention(*rows, paths, heads)
    grads = torch.empty_like(q)[:, width:], *torch.empty_like(kv).chunk(2, dim=1)
    tree_attention_bwd(q[:, width:], *rows, paths, heads, grads)
    return out, *grads


def classifier(s: Source) -> Any:
    t, d, classes, shots = s.random.randrange(2, 40), s.random.randrange(2, 40), s.random.randrange(2, 9), 3
    y = torch.arange(classes * shots) % classes
    b = sb.Bridge(torch.randn(t, d, generator=s.generator), atol=1e-3)
    text = torch.randn(classes, d, generator=s.generator)
    clf = sb.SeMoBridgeClassifier(b, text, class_names=list(range(classes)))
    clf.fit(torch.randn(len(y), d, generator=s.generator), y)
    if s.wrong():
        clf.tune(s.rows(s.size(1), d, torch.float32).contiguous(), y[:1], n_trials=3)
    x = torch.randn(s.size(1), d, generator=s.generator)
    clf.tune(x, torch.randint(0, classes, (len(x),), generator=s.generator), n_trials=5, sampler="random")
    return clf.logits(s.rows(s.size(), d, s.dtype()))


def cache_grid(s: Source) -> Any:
    d, classes, n = s.size(1), s.random.randrange(1, 40), s.size()
    labels = torch.randint(0, classes, (s.size(1) + classes,), generator=s.generator)
    labels[:classes] = torch.arange(classes)
    dtype = s.random.choice(DTYPES[:2])
    sets = s.random.randrange(3)
    weights = torch.rand(sets, len(labels), generator=s.generator).to(dtype) if sets else None
    keys = torch.randn(len(labels), d, generator=s.generator).to(dtype)
    x = torch.randn(n, d, generator=s.generator).to(dtype)
    own = torch.randint(-1, classes + 1, (n,), generator=s.generator).clamp_(0, classes - 1)
    text = torch.randn(n, classes, generator=s.generator).to(dtype)
    grid = CacheGrid(keys, labels, classes, weights)
    return grid.count(x, text, own, [0.5, 3.0, 40.0][: 1 + s.random.randrange(3)], [2.0, 0.1, 7.0])


def training(s: Source) -> Any:
    t, d, classes = s.random.randrange(2, 30), s.random.randrange(2, 30), s.random.randrange(2, 7)
    y = torch.randint(0, classes, (s.random.randrange(classes, 40),), generator=s.generator)
    y[:classes] = torch.arange(classes)
    clf = sb.SeMoBridgeT(
        sb.Bridge(torch.randn(t, d, generator=s.generator), atol=1e-3),
        torch.randn(classes, d, generator=s.generator), torch.randn(classes, t, generator=s.generator),
        class_names=list(range(classes)), steps=4,
    )  # fmt: skip
    return clf.fit(torch.randn(len(y), d, generator=s.generator), y).logits(s.rows(s.size(), d, s.dtype()))


CALLS: tuple[Callable[[Source], Any], ...] = (
    project_normalize, projection, bridge, linear_map, support_logits, support_set, topk, gallery,
    filtered_topk, retrieval_metrics, relevant_items, symmetric_kl, attention, cache_grid, classifier,
    training,
)  # fmt: skip


def outcome(call: Callable[[Source], Any], seed: int) -> list[Tensor] | str:
    try:
        found = call(Source(seed))
    except ERRORS as error:
        assert str(error), f"{call.__name__} {seed}: an error without words"
        return str(error)
    tensors = [found] if isinstance(found, Tensor) else list(found)
    return [t for t in tensors if t is not None]


def alike(a: list[Tensor] | str, b: list[Tensor] | str) -> bool:
    if isinstance(a, str) or isinstance(b, str):
        return a == b
    pairs = zip(a, b, strict=True)
    return all(
        x.dtype is y.dtype and x.shape == y.shape and torch.equal(x.nan_to_num(7), y.nan_to_num(7))
        and torch.equal(x.isnan(), y.isnan())
        for x, y in pairs
    )  # fmt: skip


def main(seconds: float, seed: int) -> None:
    warnings.simplefilter("ignore")
    done: Counter[str] = Counter()
    refused = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for call in CALLS if seed % 8 == 0 else CALLS[:-2]:  # those two train, which takes long
            print(f"{call.__name__} {seed}", file=sys.stderr)  # the last line names the call that died
            torch.set_num_threads(1 + seed % 3)
            first = outcome(call, seed)
            if seed % 4 == 0:
                assert alike(first, outcome(call, seed)), f"{call.__name__} {seed}: not the same twice"
            done[call.__name__] += 1
            refused += isinstance(first, str)
            seed += 1
    print(json.dumps({"calls": dict(done), "refused": refused}))


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]))

"""retrieval_metrics on sets of the size of CUB (11 788) and SOP (60 502), queries = gallery, D = 512.

`eager` sorts blocks of the similarity matrix and takes cumulative sums, `torchmetrics` is its loop over
queries (200 of them, a group of its own), `mm` is the bare similarity product, 1024 queries at a time
into a ready output. At 60 502 only ours and the product are timed: sorting takes minutes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import pytest
import torch
from streams import WIDTH, rows_of_classes, time_few
from torch import Tensor

import semobridge_ext as sb

SETS = {"CUB": (11_788, 200), "SOP": (60_502, 11_316)}
BLOCK, FEW = 1024, 200
SWAPS = 5e-4  # float32 scores swap a few neighbours of the float64 ranking, which AP feels this much


def average_precision(scores: Tensor, relevant: Tensor) -> Tensor:
    """[n] of score and relevance rows, by sorting."""
    hits = relevant.gather(1, scores.argsort(dim=1, descending=True)).to(scores.dtype)
    ranks = torch.arange(1, scores.shape[1] + 1, dtype=scores.dtype)
    return (hits.cumsum(1) / ranks * hits).sum(1) / hits.sum(1)


def by_sorting(x: Tensor, labels: Tensor, rows: Tensor) -> Tensor:
    parts = []
    for block in rows.split(BLOCK):
        scores = x[block] @ x.T
        scores[torch.arange(len(block)), block] = -torch.inf
        relevant = labels[block, None] == labels
        relevant[torch.arange(len(block)), block] = False
        parts.append(average_precision(scores, relevant))
    return torch.cat(parts)


@lru_cache(maxsize=1)
def oracle(name: str) -> Tensor:  # [200, 1] float64 AP of the first queries
    x, labels = rows_of_classes(*SETS[name], 0)
    return by_sorting(x.double(), labels, torch.arange(FEW))[:, None].nan_to_num(1.0)  # NaN: no relevant item


def product(x: Tensor, rows: int) -> tuple[Callable[[], Tensor], Tensor]:
    out = torch.empty(BLOCK, len(x))

    def run() -> Tensor:
        for block in x[:rows].split(BLOCK):
            torch.mm(block, x.T, out=out[: len(block)])
        return out[: min(rows % BLOCK or BLOCK, FEW), :100]

    last = rows - (rows % BLOCK or BLOCK)
    return run, x[last:rows][:FEW].double() @ x[:100].double().T


def native(x: Tensor, labels: Tensor) -> Callable[[], Tensor]:
    def run() -> Tensor:
        m = sb.retrieval_metrics(x, x, labels, labels, same_set=True, per_query=True)
        return m["per_query"]["AP"][:FEW, None].nan_to_num(1.0)

    return run


@pytest.mark.parametrize(
    ("name", "member"),
    [("CUB", "eager"), ("CUB", "native"), ("CUB", "mm"), ("SOP", "native"), ("SOP", "mm")],
)
def test_whole_set(benchmark, name: str, member: str) -> None:
    rows, _ = SETS[name]
    x, labels = rows_of_classes(*SETS[name], 0)
    want = oracle(name)
    if member == "native":
        function = native(x, labels)
    elif member == "mm":
        function, want = product(x, rows)
    else:

        def function() -> Tensor:
            return by_sorting(x, labels, torch.arange(rows))[:FEW, None]

    time_few(
        benchmark, function, group=f"retrieval_metrics/{name} {rows}x{WIDTH}/float32", member=member,
        oracle=want, bound=SWAPS, flops=2.0 * rows * rows * WIDTH, rounds=5 if name == "CUB" else 2,
    )  # fmt: skip


@pytest.mark.parametrize("member", ["eager", "torchmetrics", "native", "mm"])
def test_some_queries(benchmark, member: str) -> None:
    """200 queries of CUB against the rest of the set."""
    x, labels = rows_of_classes(*SETS["CUB"], 0)
    queries, asked, gallery, kept = x[:FEW], labels[:FEW], x[FEW:], labels[FEW:]
    relevant = asked[:, None] == kept
    want = average_precision(queries.double() @ gallery.double().T, relevant)[:, None]
    if member == "native":

        def function() -> Tensor:
            m = sb.retrieval_metrics(queries, gallery, asked, kept, per_query=True)
            return m["per_query"]["AP"][:, None]
    elif member == "eager":

        def function() -> Tensor:
            return average_precision(queries @ gallery.T, asked[:, None] == kept)[:, None]
    elif member == "mm":
        out = torch.empty(FEW, len(gallery))
        want = queries.double() @ gallery[:100].double().T

        def function() -> Tensor:
            return torch.mm(queries, gallery.T, out=out)[:, :100]
    else:
        retrieval = pytest.importorskip(
            "torchmetrics.functional.retrieval", reason="pip install torchmetrics"
        )

        def function() -> Tensor:
            scores = queries @ gallery.T
            each = [
                (
                    retrieval.retrieval_average_precision(scores[i], relevant[i]),
                    retrieval.retrieval_r_precision(scores[i], relevant[i]),
                    *(retrieval.retrieval_hit_rate(scores[i], relevant[i], top_k=k) for k in (1, 5, 10)),
                )
                for i in range(FEW)
            ]
            return torch.stack([row[0] for row in each])[:, None]

    time_few(
        benchmark, function, group=f"retrieval_metrics/{FEW} queries of CUB/float32", member=member,
        oracle=want, bound=SWAPS, flops=2.0 * FEW * len(gallery) * WIDTH, rounds=7,
    )  # fmt: skip

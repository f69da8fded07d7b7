"""retrieval_metrics on sets of the size of CUB (11 788) and SOP (60 502), queries = gallery, D = 512.

`eager` sorts blocks of the similarity matrix and takes cumulative sums, `torchmetrics` is its loop over
queries (200 of them, a group of its own), `mm` is the bare similarity product, 1024 queries at a time
into a ready output. At 60 502 only ours and the product are timed: sorting takes minutes. `native` is
handed one tensor as queries and gallery and computes each product once; `two tensors` gets a copy as the
gallery and computes it twice.

`revisited_metrics` on 70 queries with lists of about 55 images, beside a plain program in NumPy: one product,
one argsort of every ranking, three protocols.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import pytest
import torch
from streams import WIDTH, rows_of_classes, time_few
from torch import Tensor

import semobridge_ext as sb

SETS = {"CUB": (11_788, 200), "SOP": (60_502, 11_316)}
BLOCK, FEW = 1024, 200
ASKED, LISTED, GROUPS = 70, 4993, 30  # queries and images of ROxford; classes they are drawn from
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


def native(x: Tensor, labels: Tensor, gallery: Tensor) -> Callable[[], Tensor]:
    def run() -> Tensor:
        m = sb.retrieval_metrics(x, gallery, labels, labels, same_set=True, per_query=True)
        return m["per_query"]["AP"][:FEW, None].nan_to_num(1.0)

    return run


@pytest.mark.parametrize(
    ("name", "member"),
    [
        ("CUB", "eager"), ("CUB", "native"), ("CUB", "two tensors"), ("CUB", "mm"),
        ("SOP", "native"), ("SOP", "two tensors"), ("SOP", "mm"),
    ],
)  # fmt: skip
def test_whole_set(benchmark, name: str, member: str) -> None:
    rows, _ = SETS[name]
    x, labels = rows_of_classes(*SETS[name], 0)
    want = oracle(name)
    if member == "native":
        function = native(x, labels, x)
    elif member == "two tensors":
        function = native(x, labels, x.clone())
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


PROTOCOLS = {
    "easy": (("easy",), ("hard", "junk")),
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("easy", "junk")),
}


def revisited_by_sorting(
    queries: Tensor, gallery: Tensor, lists: dict[str, list[np.ndarray]], at: tuple[int, ...] = (1, 5, 10)
) -> tuple[np.ndarray, np.ndarray]:  # AP [N, 3] and P@k [N, 3, K]
    """The protocols on sorted rankings, the removed images struck out (docs/methods.md, §7)."""
    rankings = np.argsort(-(queries @ gallery.T).numpy(), axis=1)
    ap = np.empty((len(queries), len(PROTOCOLS)))
    precision = np.empty((*ap.shape, len(at)))
    for i, ranking in enumerate(rankings):
        for p, (positive, removed) in enumerate(PROTOCOLS.values()):
            found = np.flatnonzero(np.isin(ranking, np.concatenate([lists[name][i] for name in positive])))
            gone = np.flatnonzero(np.isin(ranking, np.concatenate([lists[name][i] for name in removed])))
            rank = found - np.searchsorted(gone, found)
            j = np.arange(1, len(rank) + 1)
            before = np.where(rank > 0, (j - 1) / np.maximum(rank, 1), 1.0)
            ap[i, p] = (before + j / (rank + 1)).sum() / (2 * len(rank))
            cut = np.minimum(at, rank[-1] + 1)
            precision[i, p] = (rank[:, None] < cut).sum(0) / cut
    return ap, precision


@lru_cache(maxsize=1)
def listed_images(gallery: int) -> tuple[Tensor, Tensor, dict[str, list[np.ndarray]]]:
    """Queries, gallery and lists; the images past the first LISTED are distractors."""
    x, labels = rows_of_classes(gallery, GROUPS, 0)
    queries, asked = rows_of_classes(ASKED, GROUPS, 1)
    own = [(labels[:LISTED] == label).nonzero().flatten().numpy() for label in asked]
    return queries, x, {name: [rows[i::3] for rows in own] for i, name in enumerate(("easy", "hard", "junk"))}


@lru_cache(maxsize=1)
def revisited_oracle(gallery: int) -> Tensor:  # [N, 3] float64
    queries, x, lists = listed_images(gallery)
    return torch.from_numpy(revisited_by_sorting(queries.double(), x.double(), lists)[0])


@pytest.mark.parametrize("gallery", [LISTED, LISTED + 200_000])
@pytest.mark.parametrize("member", ["eager", "native", "mm"])
def test_revisited(benchmark, member: str, gallery: int) -> None:
    queries, x, lists = listed_images(gallery)
    want = revisited_oracle(gallery)
    if member == "native":

        def function() -> Tensor:
            m = sb.revisited_metrics(queries, x, *lists.values(), per_query=True)
            return torch.stack([m[name]["per_query"]["AP"] for name in PROTOCOLS], 1)
    elif member == "eager":

        def function() -> Tensor:
            return torch.from_numpy(revisited_by_sorting(queries, x, lists)[0])
    else:
        out = torch.empty(ASKED, gallery)
        want = queries.double() @ x[:100].double().T

        def function() -> Tensor:
            return torch.mm(queries, x.T, out=out)[:, :100]

    time_few(
        benchmark, function, group=f"revisited_metrics/{ASKED}x{gallery}x{WIDTH}/float32", member=member,
        oracle=want, bound=SWAPS, flops=2.0 * ASKED * gallery * WIDTH, rounds=15 if gallery == LISTED else 5,
    )  # fmt: skip

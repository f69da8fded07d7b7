"""Every gallery row above a threshold, by searches whose k doubles: exact as `topk` is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from semobridge_ext.runtime.plain_modes import plain_device

_FIRST = 64  # rows that a query is asked for at first


class RangeHits(NamedTuple):
    """What each query found: entries ``limits[n] : limits[n + 1]`` are those of query n, best first."""

    limits: Any  # [N + 1] int64
    scores: Any  # [M] of the queries' scores
    indices: Any  # [M] int64, rows of the gallery


@plain_device()
def above(
    search: Callable[[Tensor, int], Any],
    count: int,
    most: int,
    threshold: float,
    exclude: Tensor | None,  # [N] int64
) -> RangeHits:
    """The rows of every query whose score is at least `threshold`.

    Args:
        search: ``search(query numbers [n], k)`` gives scores and indices [n, k], best first, NaN last.
        count: of queries.
        most: rows that a query can find.
        threshold: a NaN score reaches none.
        exclude: a row that each query must not find; −1 excludes none.
    """
    found: dict[int, tuple[Tensor, Tensor]] = {}
    open_queries, k = torch.arange(count), min(_FIRST, most)
    if threshold == -torch.inf:  # every number reaches it, and NaN, which reaches none, stands among them
        k = most
    while len(open_queries):
        scores, indices = search(open_queries, k)
        inside = scores >= threshold
        counts = inside.sum(dim=1).tolist()
        for i, (n, hits) in enumerate(zip(open_queries.tolist(), counts, strict=True)):
            if hits < k or k == most:
                row, numbers = scores[i][inside[i]], indices[i][inside[i]]
                kept = numbers >= 0 if exclude is None else numbers != exclude[n]
                found[n] = row[kept], numbers[kept]
        full = torch.tensor([hits == k and k < most for hits in counts], dtype=torch.bool)
        open_queries, k = open_queries[full], min(2 * k, most)
    lengths = torch.tensor([0] + [len(found[n][0]) for n in range(count)])
    if not count:  # of the dtypes that a search gives
        scores, indices = (part.flatten() for part in search(open_queries, 0))
        return RangeHits(torch.zeros(1, dtype=torch.int64), scores, indices)
    scores = torch.cat([found[n][0] for n in range(count)])
    indices = torch.cat([found[n][1] for n in range(count)])
    return RangeHits(lengths.cumsum(0), scores, indices)

"""How a search on a GPU is cut: products of blocks of queries with chunks of the gallery.

A chunk's scores stay in the second-level cache (50 MB on an H100, 40 on an A100) between the product that
writes them and the filter that reads them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from semobridge_ext.runtime import half_products

_SCORES = 6 << 20  # of one chunk, 24 MiB
_QUERIES = 4096  # of one block: beyond, a chunk would be too narrow for a product


class Chunk(NamedTuple):
    """The scores of some queries with the gallery rows from `first` on."""

    scores: Tensor  # [N', G'] float32, every row on a 16-byte border
    first: int


def blocks(n: int) -> Iterator[slice]:
    """Queries that are searched together."""
    for start in range(0, n, _QUERIES):
        yield slice(start, min(start + _QUERIES, n))


def columns(n: int, g: int) -> int:
    """Gallery rows of a chunk for n queries: whole groups of 512 scores."""
    return min(max(1024, _SCORES // max(n, 1) // 512 * 512), max(g, 1))


def chunks(queries: Tensor, gallery: Tensor) -> Iterator[Chunk]:  # [N, D], [G, D]
    """The scores, chunk after chunk in the same memory."""
    queries, gallery = queries.detach(), gallery.detach()
    n, g = queries.shape[0], gallery.shape[0]
    width = columns(n, g)
    stride = -(-width // 4) * 4
    memory = torch.empty(n, stride, dtype=torch.float32, device=queries.device)
    if queries.dtype is not gallery.dtype:
        queries = queries.to(torch.float32)  # once for all chunks
    for first in range(0, g, width):
        rows = gallery[first : first + width]
        scores = memory[:, : rows.shape[0]]
        half_products.product_into(scores, queries, rows.T)
        yield Chunk(scores, first)

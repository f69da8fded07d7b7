"""The error contract of topk and of a prepared gallery."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from semobridge_ext import _errors, _numbers


class SearchableGallery(ABC):
    """What `topk` takes in place of gallery rows: something that has prepared them for its own search."""

    @abstractmethod
    def topk(self, queries: Any, k: int, *, exclude: Any = None) -> Any:
        """The k best of every query."""


def check_matrix(function: str, name: str, value: Tensor) -> None:
    """Rows of items, [.., D]."""
    _errors.check_float_tensor(function, name, value)
    if value.dim() != 2 or value.shape[1] == 0:
        remedy = "pass one row per item"
        raise ValueError(_errors.message(function, name, "be [.., D] with 2 axes", value, remedy))


def check(
    function: str,
    queries: Tensor,  # [N, D]
    gallery: Tensor,  # [G, D]
    k: int,
    exclude: Tensor | None,  # [N]
    allowed: int | None = None,
) -> None:
    """Kind, dtype, shape and device of a search; `allowed` gallery rows take part; None: all."""
    for name, value in (("queries", queries), ("gallery", gallery)):
        check_matrix(function, name, value)
    width = gallery.shape[1]
    _errors.check_last_dim(function, "queries", queries, width, f"the gallery has width {width}")
    _errors.check_same_device(function, "queries", queries, gallery.device)
    if not _numbers.is_whole(k):
        raise TypeError(
            _errors.message(function, "k", "be an int", _errors.describe(k), "pass how many to return")
        )
    rows = gallery.shape[0] if allowed is None else allowed
    most = max(rows - (1 if exclude is not None else 0), 0)
    if not 0 <= k <= most:
        remedy = f"the gallery has {rows} rows" if allowed is None else f"{rows} gallery rows take part"
        if exclude is not None:
            remedy += ", one of them excluded"
        raise ValueError(_errors.message(function, "k", f"lie in 0..{most}", k, remedy))
    if exclude is None:
        return
    if not _errors.is_dense(exclude) or exclude.dtype is not torch.int64:
        remedy = "pass the query's own row, or -1 for none"
        contract, got = "be whole numbers", _errors.describe(exclude)
        raise TypeError(_errors.message(function, "exclude", contract, got, remedy))
    if exclude.shape != queries.shape[:1]:
        contract, remedy = f"be [{queries.shape[0]}]", "pass one index per query, or -1 for none"
        raise ValueError(_errors.message(function, "exclude", contract, exclude, remedy))
    _errors.check_memory(function, "exclude", exclude)
    _errors.check_same_device(function, "exclude", exclude, gallery.device)


def excluded(function: str, exclude: Tensor | None, rows: int) -> Tensor | None:
    """A copy of its own, which no other thread writes, with every row inside the gallery.

    On a GPU the check waits for the device; not inside the capture of a CUDA graph, which may not.
    """
    if exclude is None:
        return None
    exclude = exclude.clone()
    if exclude.is_cuda and torch.cuda.is_current_stream_capturing():
        return exclude
    outside = (exclude < -1) | (exclude >= rows)
    if bool(outside.any()):
        at = int(outside.nonzero()[0])
        contract, got = f"lie in -1..{rows - 1}", f"{int(exclude[at])} at position {at}"
        remedy = f"the gallery has {rows} rows; -1 excludes none"
        raise ValueError(_errors.message(function, "exclude", contract, got, remedy))
    return exclude

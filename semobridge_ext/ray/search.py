"""Exact search over a data set whose blocks lie on many nodes: a search where each block is, one merge."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from semobridge_ext import _arrays, _numbers
from semobridge_ext._errors import describe, message
from semobridge_ext._ops.topk.checks import check_matrix
from semobridge_ext._ops.topk.op import TopK
from semobridge_ext._ops.topk.op import topk as search
from semobridge_ext.ray.cluster import library
from semobridge_ext.ray.columns import array, columns_of, rows
from semobridge_ext.retrieval.streamed import merged

_NAME = "ray.topk"


def topk(
    queries: Any,  # [N, D]
    gallery: Any,  # a ray.data.Dataset
    k: int,
    *,
    exclude: Any = None,  # [N] whole numbers
    column: str = "features",
) -> TopK:
    """The k rows of a Ray Dataset of largest inner product: ``sb.topk`` where no node holds the gallery.

    Each block is searched in the task that reads it, and its k best rows come to the driver, which merges
    them in the order of the blocks. The gallery streams: neither the driver nor the object store holds it.

    Args:
        queries: [N, D] of any float dtype, a tensor or an array, in the driver's memory.
        gallery: a Dataset with one row an item. Row i is the i-th in the order of the data set, which Ray's
            readers and ``map_batches`` keep here.
        k: how many, at most the rows of the data set, one less with ``exclude``.
        exclude: [N] whole numbers, a row that each query must not get; −1 excludes none.
        column: of the features, vectors of length D, float32, float64 or float16.

    Returns:
        ``TopK(scores [N, k], indices [N, k] int64)`` on the CPU, arrays where the queries are.

    Raises:
        TypeError, ValueError: before a task is started, another kind, dtype, shape or k; afterwards a column
            that is missing, another width, or a k that the rows do not suffice for. ImportError: without Ray.

    Numerics: the bits of ``sb.topk(queries, whole gallery, k)`` on a CPU: a score does not depend on its
        block, equal scores stand in order of row also across blocks, and a NaN score ranks with −inf.
        Deterministic, whatever block is ready first. No gradient.

    Memory: on the driver N·k candidates of a block and as many of the result; in a task a block and 64 MiB.

    Example:
        >>> import numpy as np, ray, semobridge_ext as sb  # doctest: +SKIP
        >>> gallery = ray.data.from_numpy(np.eye(4, dtype=np.float32))  # doctest: +SKIP
        >>> queries = np.eye(4, dtype=np.float32)  # doctest: +SKIP
        >>> sb.ray.topk(queries, gallery, 1, column="data").indices[:, 0]  # doctest: +SKIP
        array([0, 1, 2, 3])
    """
    as_arrays = not isinstance(queries, Tensor) and _arrays.is_array(queries)
    queries = _arrays.tensor(_NAME, "queries", queries)
    check_matrix(_NAME, "queries", queries)
    if not _numbers.is_whole(k) or k < 0:
        kind = ValueError if _numbers.is_whole(k) else TypeError
        contract, got = "be an int from 0 up", describe(k)
        raise kind(message(_NAME, "k", contract, got, "pass how many to return"))
    if not isinstance(column, str):
        remedy = "pass the name of a column"
        raise TypeError(message(_NAME, "column", "be a str", describe(column), remedy))
    left_out = _excluded(exclude, len(queries))
    _check_dataset(gallery)
    rows = queries.detach().cpu()
    # bfloat16 has no NumPy type; float32 holds each of its numbers, and the sums are float32 either way.
    rows = rows.float() if rows.dtype is torch.bfloat16 else rows
    found, size = _merged(rows, gallery, int(k), left_out, column)
    most = size - (left_out is not None)
    if k > most:
        remedy = f"the gallery has {size} rows" + (", one of them excluded" if left_out is not None else "")
        raise ValueError(message(_NAME, "k", f"lie in 0..{max(most, 0)}", k, remedy))
    if left_out is not None and int(left_out.max(initial=-1)) >= size:
        got = str(int(left_out.max()))
        remedy = f"the gallery has {size} rows; -1 excludes none"
        raise ValueError(message(_NAME, "exclude", f"lie in -1..{size - 1}", got, remedy))
    return TopK(*map(_arrays.array, found)) if as_arrays else found


def _excluded(exclude: Any, queries: int) -> np.ndarray | None:  # [N] int64
    if exclude is None:
        return None
    found = _arrays.whole(exclude)
    if not isinstance(found, Tensor) or found.dtype is not torch.int64:
        remedy = "pass the query's own row, or -1 for none"
        raise TypeError(message(_NAME, "exclude", "be whole numbers", describe(exclude), remedy))
    if found.shape != (queries,):
        remedy = "pass one row per query, or -1 for none"
        raise ValueError(message(_NAME, "exclude", f"be [{queries}]", found, remedy))
    if queries and int(found.min()) < -1:
        got, remedy = str(int(found.min())), "-1 excludes none"
        raise ValueError(message(_NAME, "exclude", "be -1 or a row", got, remedy))
    return found.cpu().numpy()


def _check_dataset(gallery: Any) -> None:
    library(_NAME)
    import ray.data

    if not isinstance(gallery, ray.data.Dataset):
        remedy = "make one, for example with ray.data.read_parquet(...); sb.topk takes rows in memory"
        raise TypeError(message(_NAME, "gallery", "be a ray.data.Dataset", describe(gallery), remedy))


def best_of_block(batch: Any, queries: np.ndarray, k: int, column: str) -> dict[str, np.ndarray]:
    """One row: the best of a block, filled up to k, and how many rows the block has."""
    part = rows(_NAME, "column", columns_of(_NAME, batch), column)
    n, size = len(queries), len(part)
    scores, indices = np.empty((1, n, k), np.float64), np.full((1, n, k), -1, np.int64)
    wide = np.zeros(1, bool)
    if size:
        found = search(torch.from_numpy(np.array(queries)), part, min(k, size))
        kept = min(k, size)
        scores[0, :, :kept], indices[0, :, :kept] = array(found.scores), array(found.indices)
        wide[0] = found.scores.dtype is torch.float64
    return {"scores": scores, "indices": indices, "size": np.asarray([size]), "wide": wide}


def _lists(mapped: Any) -> Iterator[tuple[np.ndarray, np.ndarray, int, bool]]:
    for batch in mapped.iter_batches(batch_size=None, batch_format="numpy"):
        yield from zip(
            batch["scores"], batch["indices"], batch["size"].tolist(), batch["wide"].tolist(), strict=True
        )


def _merged(
    queries: Tensor, gallery: Any, k: int, exclude: np.ndarray | None, column: str
) -> tuple[TopK, int]:
    n, more = len(queries), k if exclude is None else k + 1
    scores, indices = torch.empty(n, 0, dtype=torch.float64), torch.empty(n, 0, dtype=torch.int64)
    left_out = None if exclude is None else torch.from_numpy(exclude)
    wide, base = queries.dtype is torch.float64, 0
    mapped = gallery.map_batches(
        best_of_block, batch_size=None, batch_format="numpy",
        fn_kwargs={"queries": queries.numpy(), "k": more, "column": column},
    )  # fmt: skip
    options = mapped.context.execution_options
    before, options.preserve_order = options.preserve_order, True  # rows are counted from the first block
    try:
        for part_scores, part_rows, size, is_wide in _lists(mapped):
            kept = min(more, size)
            scores = torch.cat([scores, torch.tensor(part_scores[:, :kept])], dim=1)
            indices = torch.cat([indices, torch.tensor(part_rows[:, :kept]) + base], dim=1)
            scores, indices = merged(scores, indices, more)
            wide, base = wide or is_wide, base + size
    finally:
        options.preserve_order = before
    scores, indices = merged(scores, indices, k, left_out)
    return TopK(scores if wide else scores.float(), indices), base

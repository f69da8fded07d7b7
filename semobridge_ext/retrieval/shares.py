"""How a ranking divides between the kinds of items of a gallery: the modality gap as a figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from semobridge_ext import _arrays, _errors
from semobridge_ext._ops.topk.op import topk
from semobridge_ext.retrieval.checks import check_features, check_places

_NAME = "group_shares"
_BLOCK = 1 << 20  # places looked at in one call: 12 MiB of scores and rows


def group_shares(
    query: Any,  # [N, D]
    gallery: Any,  # [G, D]
    groups: Any,  # [G] whole numbers
    *,
    at: Sequence[int] = (1, 5, 10),
    same_set: bool = False,
) -> Any:  # [len(at), K] float64
    """The mean share of each group of gallery items among the first k of a ranking by inner product.

        share[k, c] = (1/N) Σ_queries #{items of group c among the first k} / k

    With images as one group and texts as another it shows the modality gap: a text query of a mixed gallery
    may find texts alone, whatever images would answer it.

    Args:
        query: [N, D] float32, float64, bfloat16 or float16, a tensor or array; normalise for cosines.
        gallery: [G, D] of any of these dtypes.
        groups: [G] whole-number codes 0..K−1 of the gallery's items, with K = max + 1.
        at: the k, at most G (G − 1 under ``same_set``).
        same_set: the query set is the gallery, and a query does not find itself.

    Returns:
        [len(at), K] float64, an array where ``query`` is one; each row adds up to 1.

    Raises:
        TypeError: not a tensor, or not the dtype named above. ValueError: shapes, codes or k that do not
            fit; a row with NaN.

    Numerics: scores as of ``topk``; items of equal score in the order of their rows. Exact counts.
        Deterministic. Not differentiable.

    Memory: a million places at a time beside the input.

    Example:
        >>> import torch
        >>> from semobridge_ext.retrieval import group_shares
        >>> gallery = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
        >>> group_shares(torch.tensor([[1.0, 0.1]]), gallery, torch.tensor([0, 0, 1]), at=(1, 3))
        tensor([[1.0000, 0.0000],
                [0.6667, 0.3333]], dtype=torch.float64)
    """
    if _arrays.is_array(query):
        rows = _arrays.tensor(_NAME, "query", query, getattr(gallery, "device", None))
        return _arrays.array(group_shares(rows, gallery, groups, at=at, same_set=same_set))
    gallery = _arrays.tensor(_NAME, "gallery", gallery, getattr(query, "device", None))
    check_features(_NAME, query, gallery)
    groups = _arrays.whole(groups, gallery.device)
    if not _errors.is_dense(groups) or groups.dtype is not torch.int64:
        contract, remedy = "be whole numbers", "pass codes from 0"
        raise TypeError(_errors.message(_NAME, "groups", contract, _errors.describe(groups), remedy))
    _errors.check_values(_NAME, "groups", groups)
    if groups.shape != gallery.shape[:1] or int(groups.min()) < 0:
        contract, remedy = f"be [{len(gallery)}] codes from 0", "pass one code per row of the gallery"
        raise ValueError(_errors.message(_NAME, "groups", contract, groups, remedy))
    if same_set and query.shape != gallery.shape:
        contract, remedy = f"be the gallery, {list(gallery.shape)}, under same_set", "drop same_set"
        raise ValueError(_errors.message(_NAME, "query", contract, query, remedy))
    most = len(gallery) - same_set
    at = check_places(_NAME, "at", at, most)
    codes, kinds = groups.to(gallery.device), int(groups.max()) + 1
    counts = torch.zeros(len(at), kinds, dtype=torch.int64)
    if not at:
        return counts.double()
    widest = max(at)
    for rows in torch.arange(len(query), device="cpu").split(max(1, _BLOCK // widest)):
        own = rows.to(query.device) if same_set else None
        found = topk(query[rows.to(query.device)], gallery, widest, exclude=own).indices
        for i, k in enumerate(at):
            counts[i] += torch.bincount(codes[found[:, :k]].flatten(), minlength=kinds).cpu()
    places = torch.tensor(list(at), dtype=torch.float64)[:, None] * len(query)
    return counts.double() / places

"""What retrieval metrics ask of features, labels, relevant items and places of a ranking."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from semobridge_ext import _arrays, _errors, _numbers
from semobridge_ext.runtime.rows import compute_dtype

_NAME = "retrieval_metrics"
_PLACES = 2**31 - 1  # the core counts in 32 bits


def check_features(function: str, query: Tensor, gallery: Tensor) -> None:
    for name, value in (("query", query), ("gallery", gallery)):
        _errors.check_float_tensor(function, name, value)
        if value.dim() != 2 or value.numel() == 0:
            remedy = "pass one row per item"
            raise ValueError(_errors.message(function, name, "be 2-D and not empty", value, remedy))
        _errors.check_values(function, name, value)
    width = gallery.shape[1]
    _errors.check_last_dim(function, "query", query, width, f"the gallery has width {width}")
    _errors.check_same_device(function, "query", query, gallery.device)
    _check_scores(function, query.detach(), gallery.detach())


def _not_finite(values: Tensor) -> Tensor:
    return ~torch.isfinite(values)


def _check_scores(function: str, query: Tensor, gallery: Tensor) -> None:
    """Refuses rows of which a score would be NaN: that has no place in a ranking."""
    remedy = "drop these rows: a NaN score has no rank"
    for name, rows, others in (("query", query, gallery), ("gallery", gallery, query)):
        if not len(_errors.rows_with(rows, _not_finite)):
            continue
        _errors.check_rows(function, name, rows, remedy, infinite=True)
        compute = compute_dtype(rows.dtype, others.dtype)
        for wild in _errors.rows_with(rows, torch.isinf).split(64):  # ∞·0 and ∞ − ∞
            found = rows[wild.to(rows.device)].to(compute)
            for part in others.split(1 << 14):
                spoiled = torch.isnan(found @ part.to(compute).T).any(dim=1).cpu()
                if bool(spoiled.any()):
                    got = f"infinity in row {int(wild[spoiled][0])}, which makes NaN of a score"
                    raise ValueError(
                        _errors.message(function, name, "give scores that are numbers", got, remedy)
                    )


def check_places(function: str, argument: str, places: Any, most: int | None = None) -> tuple[int, ...]:
    """The k of Recall@k and its like, 1..most."""
    found = _numbers.whole_numbers(function, argument, places, "(1, 5, 10)")
    for k in found:
        if not 1 <= k <= (_PLACES if most is None else most):
            contract = f"lie in 1..{_PLACES if most is None else most}" if k >= 1 or most else "be ≥ 1"
            remedy = "pass (1, 5, 10)" if most is None else "leave it out"
            raise ValueError(_errors.message(function, argument, contract, k, remedy))
    return found


def _check_labels(name: str, labels: Any, features: Tensor) -> None:
    if not _errors.is_dense(labels) or labels.dtype is not torch.int64:
        contract, remedy = "hold whole numbers or names", "pass an int64 tensor, an array or a list"
        raise TypeError(_errors.message(_NAME, name, contract, _errors.describe(labels), remedy))
    if labels.shape != features.shape[:1]:
        contract = f"be [{features.shape[0]}]"
        raise ValueError(_errors.message(_NAME, name, contract, labels, "pass one label per row"))
    _errors.check_memory(_NAME, name, labels)
    _errors.check_same_device(_NAME, name, labels, features.device)


def check_labelled(
    query: Tensor,
    gallery: Tensor,
    query_labels: Tensor,
    gallery_labels: Tensor,
    same_set: bool,
) -> None:
    check_features(_NAME, query, gallery)
    _check_labels("query_labels", query_labels, query)
    _check_labels("gallery_labels", gallery_labels, gallery)
    if same_set and (query.shape != gallery.shape or not torch.equal(query_labels, gallery_labels)):
        contract = f"be the gallery, {list(gallery.shape)} with the same labels, under same_set"
        remedy = "pass the same features twice, or drop same_set"
        raise ValueError(_errors.message(_NAME, "query", contract, query, remedy))


def check_relevant(query: Tensor, gallery: Tensor, labels: Any, same_set: bool) -> None:
    """What `check_labelled` holds of labels, for relevant items that are given themselves."""
    check_features(_NAME, query, gallery)
    if labels is not None:
        remedy = "pass labels, or the relevant items"
        raise ValueError(_errors.message(_NAME, "query_labels", "be None beside relevant", labels, remedy))
    if same_set and query.shape != gallery.shape:
        contract, remedy = f"be the gallery, {list(gallery.shape)}, under same_set", "drop same_set"
        raise ValueError(_errors.message(_NAME, "query", contract, query, remedy))


def own_rows(queries: Any, rows: int, same_set: bool, by_label: bool) -> Tensor:  # [M] int64 on the CPU
    """The gallery row that each query is."""
    if queries is None:
        return torch.arange(rows, device="cpu")
    contract, remedy = "choose rows of one set with labels", "pass same_set=True and labels, or leave it out"
    if not same_set or not by_label:
        raise ValueError(_errors.message(_NAME, "queries", contract, queries, remedy))
    own = _arrays.whole(queries)
    if not isinstance(own, Tensor) or own.dtype is not torch.int64 or own.dim() != 1 or not own.numel():
        remedy = "pass a 1-D int64 tensor, an array or a list"
        raise TypeError(_errors.message(_NAME, "queries", "be [M] whole numbers", queries, remedy))
    own = own.detach().cpu().clone()
    wrong = (own < 0) | (own >= rows)
    if bool(wrong.any()):
        at = int(wrong.nonzero()[0, 0])
        contract, got = f"lie in 0..{rows - 1}", f"{int(own[at])} at position {at}"
        raise ValueError(_errors.message(_NAME, "queries", contract, got, "pass rows of the set"))
    return own

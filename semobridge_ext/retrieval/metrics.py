"""retrieval_metrics: mAP, mAP@R, R-precision and Recall@k by counting, not by sorting.

A gallery item is relevant to a query when their labels are equal; R counts the relevant ones. With
``prec(i)`` the share of relevant items among the first i of the ranking by inner product:

    AP = (1/R) Σ_{i: relevant} prec(i)                AP@R = (1/R) Σ_{i ≤ R: relevant} prec(i)
    R-precision = prec(R)                             Recall@k = [a relevant item is in the first k]

Ties: items of equal score have no order, so every metric is its expected value over all orders of
the tied items (McSherry and Najork, ECIR 2008): a tie of t items with m relevant ones below g others
of which a are relevant adds Σ_{p=1..t} (m/t)·(a + 1 + (p−1)(m−1)/(t−1))/(g + p) to R·AP.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from semobridge_ext import _arrays, _errors, _inputs
from semobridge_ext._ops.rank_counts import cpu
from semobridge_ext._ops.rank_counts.op import (
    Marked,
    RankCounts,
    blocks,
    fits_at_once,
    rank_counts,
    rank_counts_symmetric,
)
from semobridge_ext.retrieval import eager, relevance
from semobridge_ext.retrieval.checks import check_labelled, check_places, check_relevant, own_rows
from semobridge_ext.retrieval.published import published_values
from semobridge_ext.runtime.choice import resolve
from semobridge_ext.runtime.plain_modes import plain_device
from semobridge_ext.runtime.rows import unit_columns

_NAME = "retrieval_metrics"


def mark_by_label(query_labels: Tensor, gallery_labels: Tensor, own: Tensor | None) -> Marked:
    """The gallery rows of each query's label, as ranges of one list in label order.

    `own` [N]: the gallery row that a query is, which it does not find.
    """
    ordered, rows = torch.sort(gallery_labels, stable=True)
    begin = torch.searchsorted(ordered, query_labels)
    end = torch.searchsorted(ordered, query_labels, right=True)
    return Marked(rows, begin, end, own)


def metrics_from_counts(counts: RankCounts, recall_at: Sequence[int]) -> Tensor:
    """[N, 3 + len(recall_at)] float64: AP, AP@R, R-precision, Recall@k..; NaN: nothing relevant."""
    return cpu.rank_metrics(counts.offsets, counts.greater, counts.equal, recall_at)


def _is_same(query: Tensor, gallery: Tensor) -> bool:
    """Whether both are the same rows in memory, so that each product of two serves both."""
    places = [(t.data_ptr(), t.shape, t.stride(), t.dtype) for t in (query, gallery)]
    return places[0] == places[1]


def _native(
    query: Tensor,
    gallery: Tensor,
    query_labels: Tensor,
    gallery_labels: Tensor,
    own: Tensor | None,  # [N]
    recall_at: Sequence[int],
) -> Tensor:
    same = _is_same(query, gallery)
    query = unit_columns(query)
    gallery = query if same else unit_columns(gallery)
    marked = mark_by_label(query_labels, gallery_labels, own)
    # Neighbours of one label share the scores of their relevant rows.
    order = torch.argsort(query_labels, stable=True)
    out = torch.empty(len(order), 3 + len(recall_at), dtype=torch.float64, device="cpu")
    if same and fits_at_once(marked.sizes()):
        found = marked.sizes()[order] > 0
        asked = order[found]
        mine = Marked(marked.rows, marked.begin[asked], marked.end[asked], None if own is None else asked)
        counts = rank_counts_symmetric(gallery, torch.cat([asked, order[~found]]), mine)
        out.fill_(torch.nan)
        out[asked] = metrics_from_counts(counts, recall_at)
        return out
    own = None if own is None else own[order]
    marked = Marked(marked.rows, marked.begin[order], marked.end[order], own)
    for part in blocks(marked.sizes()):
        rows = order[part]
        exclude = None if marked.exclude is None else marked.exclude[part]
        mine = Marked(marked.rows, marked.begin[part], marked.end[part], exclude)
        counts = rank_counts(query, gallery, rows, mine)
        out[rows] = metrics_from_counts(counts, recall_at)
    return out


@plain_device()
def retrieval_metrics(
    query: Any,  # [N, D]
    gallery: Any,  # [G, D]
    query_labels: Any = None,  # [N] whole numbers or names
    gallery_labels: Any = None,  # [G] whole numbers or names
    *,
    relevant: Any = None,  # [M, 2] whole numbers, or N lists
    same_set: bool = False,
    queries: Any = None,  # [M] whole numbers
    recall_at: Sequence[int] = (1, 5, 10),
    per_query: bool = False,
    at_r: str = "R",
) -> dict[str, Any]:
    """mAP, mAP@R, R-Precision and Recall@k of a ranking by inner product, as fractions.

    Args:
        query: [N, D] float32, float64, bfloat16 or float16, a tensor or a NumPy array; normalise for a
            cosine ranking.
        gallery: [G, D], any of these dtypes; read tile by tile. May be memory-mapped.
        query_labels: [N] whole numbers or names (strings, or anything that hashes) as tensor, array or list.
        gallery_labels: [G] of the same; items of the query's label are its relevant ones.
        relevant: in place of labels the relevant items themselves, such as captions of images: pairs
            (query row, gallery row) as a tensor or array of whole numbers [M, 2] in any order, or a list of N
            lists of gallery rows. What is named twice counts once.
        same_set: the query set is the gallery: row i of one is row i of the other. A query then
            finds neither itself nor counts itself among its relevant items.
        queries: under ``same_set`` with labels, the rows that ask: a sample of a large set. Every
            row stays in the gallery; ``per_query`` then holds M values, in this order.
        recall_at: the k of Recall@k.
        per_query: adds ``"per_query"``.
        at_r: "R", or "published" for tables of Cross-the-Gap and IsoCLIP alone: their mAP@R looks at R + 1
            places under ``same_set``, and a query without relevant items counts as 0 in every mean
            (retrieval/published.py). A second pass over the gallery.

    Returns:
        ``{"mAP", "mAP@R", "R-Precision", "Recall@k".., "queries", "without_relevant"}``: means over
        the ``queries`` queries that have a relevant item; the ``without_relevant`` others are left
        out. With ``per_query`` also ``{"AP", "AP@R", "R-Precision", "Recall@k".., "relevant"}``,
        float64 tensors (arrays where ``query`` is one) [N] with NaN for those, and R.

    Raises:
        TypeError: not a tensor, or not the dtype named above. ValueError: shapes, devices, labels or
            relevant rows that do not fit; labels beside relevant items; a row with NaN, or whose infinity
            makes a score NaN (named); no query has a relevant item.

    Numerics: scores in float32 (float64 if an input is), metrics in float64. Ties take their expected
        value over all orders of the tied items. Scores may be negative or infinite.
        Deterministic, whatever the number of threads. Not differentiable.

    Memory: O(block): 2 million relevant items at a time, of 1024 queries or of a whole set that is its own
        gallery; about 100 MiB at most, and 16 for each thread; with ``relevant`` also some copies of the
        pairs.

    Example:
        >>> import torch, semobridge_ext as sb
        >>> x = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.5, 0.8]])
        >>> m = sb.retrieval_metrics(x, x, torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 1, 1]),
        ...                          same_set=True, recall_at=(1,))
        >>> m["mAP"], m["Recall@1"], m["without_relevant"]
        (1.0, 1.0, 0)
    """
    if at_r not in ("R", "published"):
        remedy = "'published' is for comparisons with published tables"
        raise ValueError(_errors.message(_NAME, "at_r", "be 'R' or 'published'", at_r, remedy))
    if _arrays.is_array(query):
        rows = _arrays.tensor(_NAME, "query", query, getattr(gallery, "device", None))
        found = retrieval_metrics(
            rows, gallery, query_labels, gallery_labels, relevant=relevant, same_set=same_set,
            queries=queries, recall_at=recall_at, per_query=per_query, at_r=at_r,
        )  # fmt: skip
        if per_query:
            found["per_query"] = {name: _arrays.array(value) for name, value in found["per_query"].items()}
        return found
    gallery = _arrays.tensor(_NAME, "gallery", gallery, getattr(query, "device", None))
    recall_at = check_places(_NAME, "recall_at", recall_at)
    own = (
        own_rows(queries, len(gallery), same_set, relevant is None)
        if same_set or queries is not None
        else None
    )
    if relevant is not None:
        check_relevant(query, gallery, query_labels if gallery_labels is None else gallery_labels, same_set)
    elif query_labels is None or gallery_labels is None:
        contract, remedy = "be given with the other labels", "pass both, or relevant="
        name = "query_labels" if query_labels is None else "gallery_labels"
        raise TypeError(_errors.message(_NAME, name, contract, "None", remedy))
    else:
        device = getattr(query, "device", None)
        query_labels, gallery_labels = _inputs.codes(
            _NAME, {"query_labels": query_labels, "gallery_labels": gallery_labels}, device
        )
        check_labelled(query, gallery, query_labels, gallery_labels, same_set)
    query, gallery, ks = query.detach(), gallery.detach(), recall_at
    native = resolve(_NAME, query.device) != "eager"
    published, marked = at_r == "published", None
    if relevant is not None:
        marked = relevance.mark_relevant(_NAME, relevant, len(query), len(gallery), same_set)
        values = (relevance.native if native else relevance.plain)(query, gallery, marked, ks)
    else:
        assert query_labels is not None and gallery_labels is not None
        # Read once from here on: what two passes make of them must agree, whatever another thread writes.
        gallery_labels = gallery_labels.clone().resolve_neg()
        query_labels = gallery_labels if same_set else query_labels.clone().resolve_neg()
        if queries is not None:
            assert own is not None
            asked = own.to(query.device)
            query, query_labels = query[asked], query_labels[asked]
        run = _native if native else eager.retrieval_metrics
        values = run(query, gallery, query_labels, gallery_labels, own, ks)
        if per_query or (published and same_set):
            marked = mark_by_label(query_labels.cpu(), gallery_labels.cpu(), own)
    known = ~torch.isnan(values[:, 0])
    if not bool(known.any()):
        raise _nothing_relevant(len(values), by_label=relevant is None)
    if published and same_set:
        assert marked is not None
        values = published_values(values, query, gallery, marked, native=native)
    if published:
        values = torch.nan_to_num(values, nan=0.0)
    names = ["AP", "AP@R", "R-Precision", *(f"Recall@{k}" for k in ks)]
    counted = values if published else values[known]
    result: dict[str, Any] = {
        name if name[0] == "R" else f"m{name}": float(counted[:, i].mean()) for i, name in enumerate(names)
    }
    result["queries"] = len(counted)
    result["without_relevant"] = int((~known).sum())
    if per_query:
        assert marked is not None
        result["per_query"] = {name: values[:, i].clone() for i, name in enumerate(names)}
        result["per_query"]["relevant"] = marked.sizes()
    return result


def _nothing_relevant(queries: int, by_label: bool) -> ValueError:
    if by_label:
        argument, got = "gallery_labels", f"no common label for any of {queries} queries"
    else:
        argument, got = "relevant", f"none for any of {queries} queries"
    remedy = f"check that both {'label vectors' if by_label else 'columns'} use the same numbering"
    return ValueError(_errors.message(_NAME, argument, "hold relevant items", got, remedy))

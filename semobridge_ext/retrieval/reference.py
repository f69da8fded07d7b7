"""The oracle of retrieval_metrics: one sorted ranking per query (docs/methods.md §7)."""

from __future__ import annotations

import torch
from torch import Tensor


def _one_query(scores: Tensor, relevant: Tensor, recall_at: tuple[int, ...]) -> list[float]:
    """AP, AP@R, R-precision, Recall@k.. of one ranking; ties take their expected value."""
    total = int(relevant.sum())
    if total == 0:
        return [float("nan")] * (3 + len(recall_at))
    scores, order = scores.sort(descending=True, stable=True)
    hits = relevant[order].double()
    _, group, sizes = torch.unique_consecutive(scores, return_inverse=True, return_counts=True)
    tied = sizes[group].double()
    found = torch.zeros_like(sizes, dtype=torch.float64).index_add_(0, group, hits)
    first = (sizes.cumsum(0) - sizes)[group].double()  # ranked above the group
    above = (found.cumsum(0) - found)[group]
    rank = torch.arange(1, len(scores) + 1, dtype=torch.float64, device=hits.device)
    chance = found[group] / tied  # that this rank holds a relevant item
    others = (rank - first - 1) * (found[group] - 1) / (tied - 1).clamp(min=1)
    precision = chance * (above + 1 + others) / rank
    result = [float(precision.sum()), float(precision[:total].sum()), float(chance[:total].sum())]
    result = [value / total for value in result]
    for k in recall_at:
        # A rank misses if it draws none of the group's relevant items from those left in the tie.
        left = tied - (rank - first - 1)
        miss = ((left - found[group]) / left).clamp(min=0)
        result.append(1.0 - float(miss[:k].prod()))
    return result


def retrieval_metrics(
    query: Tensor,  # [N, D]
    gallery: Tensor,  # [G, D]
    query_labels: Tensor,  # [N]
    gallery_labels: Tensor,  # [G]
    *,
    same_set: bool = False,
    recall_at: tuple[int, ...] = (1, 5, 10),
) -> Tensor:  # [N, 3 + len(recall_at)]: AP, AP@R, R-precision, Recall@k..; NaN: nothing relevant
    """AP, AP@R, R-precision and Recall@k by sorting one query's ranking at a time.

    Args:
        query: [N, D] floating point.
        gallery: [G, D] of the same dtype.
        query_labels: [N] int64.
        gallery_labels: [G] int64; items of the query's label are its relevant ones.
        same_set: row i of the gallery is query i and is left out of its ranking.
        recall_at: the k of Recall@k.

    Returns:
        [N, 3 + len(recall_at)] float64: AP, AP@R, R-precision, Recall@k..; NaN where nothing is relevant.

    Raises:
        RuntimeError: shapes that do not fit each other (PyTorch's own message).

    Numerics: scores in the dtype of the input, metrics in float64. Ties take their expected value over all
        orders; a NaN score ranks with −inf. Not differentiable.

    Memory: O(G) at a time.

    Example:
        >>> import torch, semobridge_ext as sb
        >>> x, y = torch.eye(2), torch.tensor([0, 1])
        >>> sb.reference.retrieval_metrics(x, x, y, y, recall_at=(1,))
        tensor([[1., 1., 1., 1.],
                [1., 1., 1., 1.]], dtype=torch.float64)

    docs/methods.md §7.
    """
    rows = []
    query_labels, gallery_labels = query_labels.cpu(), gallery_labels.cpu()
    for i in range(len(query)):
        scores = (gallery @ query[i]).cpu()
        scores = scores.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
        relevant = gallery_labels == query_labels[i]
        if same_set:
            keep = torch.arange(len(gallery), device="cpu") != i
            scores, relevant = scores[keep], relevant[keep]
        rows.append(_one_query(scores, relevant, recall_at))
    found = torch.tensor(rows, dtype=torch.float64, device="cpu")
    return found.reshape(len(query), 3 + len(recall_at))

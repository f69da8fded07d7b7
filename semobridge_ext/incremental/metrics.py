"""Average precision and area under the ROC curve of each finding, exact with ties."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from semobridge_ext import _errors, _inputs
from semobridge_ext.incremental.labels import label_codes


class _Levels(NamedTuple):
    """Images by level of score, the highest first: counts of positives and negatives at each."""

    positives: Tensor  # [levels] float64, whole numbers
    negatives: Tensor  # [levels]


def _levels(labels: Tensor, scores: Tensor) -> _Levels:  # [n] 0 or 1, [n]
    values, place = torch.unique(scores, return_inverse=True)
    place = len(values) - 1 - place
    positives = torch.bincount(place[labels == 1], minlength=len(values)).double()
    return _Levels(positives, torch.bincount(place, minlength=len(values)) - positives)


def _average_precision(found: _Levels) -> float:
    hits = found.positives.cumsum(0)
    shown = hits + found.negatives.cumsum(0)
    return float((found.positives * hits / shown).sum() / hits[-1])


def _roc_auc(found: _Levels) -> float:
    above = found.positives.cumsum(0) - 0.5 * found.positives  # of a negative: a tie is half a pair
    return float((above * found.negatives).sum() / (found.positives.sum() * found.negatives.sum()))


def _checked(where: str, Y: Any, scores: Any) -> tuple[Tensor, Tensor]:
    codes = label_codes(where, "Y", Y)
    values = _inputs.features(where, "scores", scores, allow_empty=True).cpu()
    if values.shape != codes.shape:
        remedy = "pass one score per label"
        raise ValueError(_errors.message(where, "scores", f"be {list(codes.shape)}", values, remedy))
    return codes, values


def _by_finding(where: str, Y: Any, scores: Any, negatives_needed: bool, metric: Any) -> Tensor:
    codes, values = _checked(where, Y, scores)
    result = torch.full((codes.shape[1],), float("nan"), dtype=torch.float64)
    for d in range(codes.shape[1]):
        known = codes[:, d] >= 0
        labels = codes[known, d]
        positives = int(labels.sum())
        if positives and (positives < len(labels) or not negatives_needed):
            result[d] = metric(_levels(labels, values[known, d]))
    return result


def average_precision(Y: Any, scores: Any) -> Tensor:  # [L] float64
    """Average precision of each finding: ``Σ_k (R_k − R_{k−1})·P_k`` over the levels of score.

    P_k and R_k are precision and recall of the images that score at least as high as level k. Images of one
    score enter together, as scikit-learn's ``average_precision_score`` has it. (``retrieval_metrics`` takes
    the mean over the orders of tied items instead; without ties the two are one.)

    Args:
        Y: [N, L] labels 0 and 1, of any number dtype or bool; NaN or −1 is not known and left out.
        scores: [N, L] floating-point tensor or array, finite; more means rather positive.

    Returns:
        [L] float64; NaN for a finding without a known positive.

    Raises:
        TypeError: labels that are no numbers. ValueError: other values or shapes, NaN or infinite scores.

    Numerics: exact counts, float64 quotients, whatever the dtype of the scores. Not differentiable.

    Memory: O(N) beside the input.

    Example:
        >>> from semobridge_ext.incremental import average_precision
        >>> average_precision([[1], [0], [1]], [[0.9], [0.5], [0.5]])
        tensor([0.8333], dtype=torch.float64)
    """
    return _by_finding("average_precision", Y, scores, False, _average_precision)


def roc_auc(Y: Any, scores: Any) -> Tensor:  # [L] float64
    """Area under the ROC curve of each finding: the share of (positive, negative) pairs in order.

        AUC = (#{s⁺ > s⁻} + ½·#{s⁺ = s⁻}) / (positives·negatives)

    Args:
        Y: [N, L] labels 0 and 1, of any number dtype or bool; NaN or −1 is not known and left out.
        scores: [N, L] floating-point tensor or array, finite; more means rather positive.

    Returns:
        [L] float64; NaN for a finding without a known positive or without a known negative.

    Raises:
        TypeError: labels that are no numbers. ValueError: other values or shapes, NaN or infinite scores.

    Numerics: exact counts (up to 2⁵³ pairs), one float64 quotient. Not differentiable.

    Memory: O(N) beside the input.

    Example:
        >>> from semobridge_ext.incremental import roc_auc
        >>> roc_auc([[1], [0], [1]], [[0.9], [0.5], [0.5]])
        tensor([0.7500], dtype=torch.float64)
    """
    return _by_finding("roc_auc", Y, scores, True, _roc_auc)


def mean_of(values: Tensor) -> float:
    """Of the findings that have a value; NaN if none has."""
    known = values[~torch.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")

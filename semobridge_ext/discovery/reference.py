"""The oracles: the spectral filter, the losses and the accuracy as they are written, in plain PyTorch.

Loops and whole matrices, in the dtype of the input; nothing of the product is imported.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor


class FilterResult(NamedTuple):
    """What the spectral filter finds.

    Args:
        scores: [K] in the dtype of the features.
        kept: [M] int64, in descending order of score.
        spectrum: [m] eigenvalues in descending order.

    Example:
        >>> import torch, semobridge_ext as sb
        >>> sb.reference.spectral_filter(torch.eye(3), torch.eye(3)).spectrum.shape
        torch.Size([2])
    """

    scores: Tensor  # [K]
    kept: Tensor  # [M] int64
    spectrum: Tensor  # [m]


def spectral_filter(
    image_features: Tensor,  # [N, D]
    concept_features: Tensor,  # [K, D]
    *,
    energy: float = 0.95,
    share: float = 0.99,
    temperature: float = 0.01,
) -> FilterResult:
    """Scores of concepts from the whole K×K covariance and all its eigenpairs.

    Args:
        image_features: [N, D] any float dtype; float64 for an oracle.
        concept_features: [K, D] in the same dtype.
        energy: share of the eigenvalues' sum that the kept components reach.
        share: share of the scores' sum that the kept concepts reach.
        temperature: of the softmax over concepts.

    Returns:
        (scores [K], kept [M] int64, spectrum [m]).

    Raises:
        RuntimeError: shapes that do not fit each other (PyTorch's own message).

    Numerics: every step rounds to the dtype of the input; the eigenvectors of float32 turn where
        eigenvalues are close.

    Memory: O(N·K + K²).

    Example:
        >>> import torch, semobridge_ext as sb
        >>> sorted(sb.reference.spectral_filter(torch.eye(3), torch.eye(3)).kept.tolist())
        [0, 1, 2]
    """
    images = torch.nn.functional.normalize(image_features, dim=1)
    concepts = torch.nn.functional.normalize(concept_features, dim=1)
    q = torch.softmax(images @ concepts.T / temperature, dim=1)
    covariance = torch.cov(q.T)
    values, vectors = torch.linalg.eigh(covariance)
    order = torch.argsort(values, descending=True)
    values, vectors = values[order], vectors[:, order]

    def reached(parts: Tensor, wanted: float) -> int:
        total, so_far = float(parts.sum()), 0.0
        for i, part in enumerate(parts.tolist()):
            so_far += part
            if so_far >= wanted * total:
                return i + 1
        return len(parts)

    m = reached(values, energy)
    scores = torch.zeros_like(values)
    for j in range(m):
        scores += values[j] * vectors[:, j] ** 2
    ranking = torch.argsort(scores, descending=True, stable=True)
    return FilterResult(scores, ranking[: reached(scores[ranking], share)], values[:m])


def gcd_accuracy(labels: list[int], predictions: list[int], old_classes: list[int]) -> tuple[float, ...]:
    """All, Old and New by trying every one-to-one map of clusters to classes; for a handful of both.

    Args:
        labels: N classes, numbers from 0.
        predictions: N clusters, numbers from 0.
        old_classes: the old ones among the classes.

    Returns:
        (all, old, new); the first best map counts.

    Raises:
        ZeroDivisionError: no image of one of the kinds.

    Example:
        >>> import semobridge_ext as sb
        >>> sb.reference.gcd_accuracy([0, 0, 1], [1, 1, 0], [0])
        (1.0, 1.0, 1.0)
    """
    size = max(*labels, *predictions) + 1
    best: list[bool] = []
    for order in itertools.permutations(range(size)):
        matched = [order[p] == c for p, c in zip(predictions, labels, strict=True)]
        if not best or sum(matched) > sum(best):
            best = matched
    old = [m for m, c in zip(best, labels, strict=True) if c in old_classes]
    new = [m for m, c in zip(best, labels, strict=True) if c not in old_classes]
    return sum(best) / len(best), sum(old) / len(old), sum(new) / len(new)


class GCDTerms(NamedTuple):
    """The terms of SpectralGCD's loss without their weights, each a scalar in the dtype of the rows.

    Args:
        supervised: cross-entropy of the labelled rows.
        distillation: cross-entropy against the other view.
        entropy: how far the mean prediction is from an even one.
        contrast: InfoNCE of the projections.
        supervised_contrast: SupCon of the labelled projections.
        forward_kl: KL of the teacher's concepts to the student's.
        reverse_kl: KL of the student's to the teacher's.

    Example:
        >>> import semobridge_ext as sb
        >>> sb.reference.GCDTerms._fields[:2]
        ('supervised', 'distillation')
    """

    supervised: Tensor
    distillation: Tensor
    entropy: Tensor
    contrast: Tensor
    supervised_contrast: Tensor
    forward_kl: Tensor
    reverse_kl: Tensor


def gcd_losses(
    logits: Tensor,  # [2B, C]
    projections: Tensor,  # [2B, P]
    concepts: Tensor,  # [2B, K]
    teacher: Tensor,  # [B, K]
    labels: Tensor,  # [B] int64
    labelled: Tensor,  # [B] bool
    *,
    teacher_temperature: float,
) -> GCDTerms:
    """Every term of SpectralGCD's loss, row by row, without its weight.

    Args:
        logits: [2B, C] cosines with the prototypes: B images in the first view, then in the second.
        projections: [2B, P] of the same rows, any length.
        concepts: [2B, K] student's cosines with the concepts over the temperature.
        teacher: [B, K] the teacher's, one row an image.
        labels: [B] int64; only labelled rows count.
        labelled: [B] bool.
        teacher_temperature: τ_t of the self-distillation.

    Returns:
        Seven scalars by name.

    Raises:
        ZeroDivisionError: no labelled row.

    Numerics: every step rounds to the dtype of the input. Differentiable in all rows.

    Memory: O(B²) small tensors.

    Example:
        >>> import torch, semobridge_ext as sb
        >>> two, label, yes = torch.eye(2), torch.zeros(1, dtype=torch.int64), torch.ones(1, dtype=torch.bool)
        >>> sb.reference.gcd_losses(two, two, two, two[:1], label, yes, teacher_temperature=0.1).forward_kl
        tensor(0.2311)
    """
    count = len(labels)
    rows = range(2 * count)
    unit = [p / p.norm() for p in projections]
    known = [i for i in rows if bool(labelled[i % count])]

    supervised = [-torch.log_softmax(logits[i] / 0.1, 0)[labels[i % count]] for i in known]
    crossed = []
    for i in rows:
        target = torch.softmax(logits[(i + count) % (2 * count)].detach() / teacher_temperature, 0)
        crossed.append(-(target * torch.log_softmax(logits[i] / 0.1, 0)).sum())
    mean = torch.softmax(logits / 0.1, 1).mean(0)
    entropy = (mean * mean.log()).sum() + math.log(logits.shape[1])

    contrast, supervised_contrast = [], []
    for i in rows:
        others = [j for j in rows if j != i]
        scores = torch.stack([unit[i] @ unit[j] for j in others])
        contrast.append(torch.logsumexp(scores, 0) - unit[i] @ unit[(i + count) % (2 * count)])
    for i in known:
        others = [j for j in known if j != i]
        scores = torch.stack([unit[i] @ unit[j] / 0.07 for j in others])
        alike = [k for k, j in enumerate(others) if labels[j % count] == labels[i % count]]
        supervised_contrast.append(torch.logsumexp(scores, 0) - scores[alike].mean())

    forward, reverse = [], []
    for i in rows:
        log_t, log_s = torch.log_softmax(teacher[i % count], 0), torch.log_softmax(concepts[i], 0)
        forward.append((log_t.exp() * (log_t - log_s)).sum())
        reverse.append((log_s.exp() * (log_s - log_t)).sum())

    def average(terms: list[Tensor]) -> Tensor:
        return sum(terms[1:], terms[0]) / len(terms)

    return GCDTerms(
        average(supervised), average(crossed), entropy, average(contrast), average(supervised_contrast),
        average(forward), average(reverse),
    )  # fmt: skip

"""The terms of SpectralGCD's loss, one function each. Rows are B images in one view, then in the other.

L = (1−w)·(distillation + memax·entropy) + w·supervised + (1−w)·contrast + w·supervised_contrast
    + forward_kl·KL(T‖S) + reverse_kl·KL(S‖T)                                       w = 0.35
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax, normalize

from semobridge_ext._ops.symmetric_kl.op import symmetric_kl

STUDENT_TEMPERATURE = 0.1  # of logits that are cosines with the prototypes
CONTRAST_TEMPERATURE = 1.0
SUPERVISED_CONTRAST_TEMPERATURE = 0.07


class Terms(NamedTuple):
    """Each a scalar, without its weight."""

    supervised: Tensor
    distillation: Tensor
    entropy: Tensor
    contrast: Tensor
    supervised_contrast: Tensor
    concepts: Tensor  # both divergences, weighted


class LossWeights(NamedTuple):
    supervised: float = 0.35  # w
    entropy: float = 1.0  # memax
    forward_kl: float = 1.0
    reverse_kl: float = 1.0

    def total(self, terms: Terms) -> Tensor:
        w = self.supervised
        return (
            (1 - w) * (terms.distillation + self.entropy * terms.entropy + terms.contrast)
            + w * (terms.supervised + terms.supervised_contrast)
            + terms.concepts
        )


def _known(rows: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of labelled images in both views, and their labels; −1 is no label."""
    both = labels.repeat(2)
    known = both >= 0
    return rows[known], both[known]


def supervised(logits: Tensor, labels: Tensor) -> Tensor:  # [2B, C], [B]; −1: unlabelled
    """Mean cross-entropy of the labelled rows at temperature 0.1; 0 where there is none."""
    rows, targets = _known(logits, labels)
    return cross_entropy(rows / STUDENT_TEMPERATURE, targets, reduction="sum") / max(len(rows), 1)


def self_distillation(logits: Tensor, teacher_temperature: float) -> Tensor:  # [2B, C]
    """Mean cross-entropy of each row against the sharpened prediction of its other view, without gradient."""
    targets = torch.softmax(logits.detach() / teacher_temperature, dim=1).roll(len(logits) // 2, 0)
    return -(targets * log_softmax(logits / STUDENT_TEMPERATURE, dim=1)).sum(dim=1).mean()


def mean_entropy(logits: Tensor) -> Tensor:  # [2B, C]
    """``Σ p̄ log p̄ + log C`` of the batch's mean prediction p̄: 0 where every class is used alike."""
    single = log_softmax(logits / STUDENT_TEMPERATURE, dim=1)
    log_mean = torch.logsumexp(single, dim=0) - math.log(len(single))
    return (log_mean.exp() * log_mean).sum() + math.log(logits.shape[1])


def contrast(projections: Tensor) -> Tensor:  # [2B, P]
    """InfoNCE at temperature 1: the other view of an image among all other rows."""
    unit = normalize(projections, dim=1)
    scores = _without_self(unit @ unit.T / CONTRAST_TEMPERATURE)
    partners = torch.arange(len(unit), device=unit.device).roll(len(unit) // 2)
    return cross_entropy(scores, partners)


def supervised_contrast(projections: Tensor, labels: Tensor) -> Tensor:  # [2B, P], [B]; −1: unlabelled
    """SupCon at 0.07 among the labelled rows: the mean log-likelihood of those with the same label."""
    rows, targets = _known(projections, labels)
    if not len(rows):
        return projections.sum() * 0
    unit = normalize(rows, dim=1)
    scores = _without_self(unit @ unit.T / SUPERVISED_CONTRAST_TEMPERATURE)
    alike = targets[:, None] == targets[None, :]
    alike.fill_diagonal_(False)
    likelihood = log_softmax(scores, dim=1).masked_fill(~alike, 0.0)
    return -(likelihood.sum(dim=1) / alike.sum(dim=1)).mean()


def _without_self(scores: Tensor) -> Tensor:
    own = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    return scores.masked_fill(own, -math.inf)


def concept_distillation(
    student: Tensor,  # [2B, K] cosines over the temperature
    teacher: Tensor,  # [2B, K]
    forward: float = 1.0,
    reverse: float = 1.0,
) -> Tensor:
    """``forward·KL(T‖S) + reverse·KL(S‖T)``, mean over rows.

    What the two weights have in common is one pass of the fused operator, the rest a plain divergence.
    """
    common = min(forward, reverse)
    total = 2 * common * symmetric_kl(student, teacher) if common else student.sum() * 0
    if forward > common:
        total = total + (forward - common) * _divergence(teacher, student)
    if reverse > common:
        total = total + (reverse - common) * _divergence(student, teacher)
    return total


def _divergence(p: Tensor, q: Tensor) -> Tensor:  # KL(softmax p‖softmax q), mean over rows
    log_p, log_q = log_softmax(p, dim=1), log_softmax(q, dim=1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=1).mean()

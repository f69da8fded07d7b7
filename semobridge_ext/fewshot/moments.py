"""Class means and the scatter around them, in float64, over shots that come in parts.

    S = Σ_i w_i (x_i − μ_{y_i})ᵀ(x_i − μ_{y_i})

Each part takes two passes: the difference of sums of squares would leave rounding where the shots are alike.
Two parts join by S + S′ + Σ_c n_c n′_c/(n_c + n′_c)·(μ_c − μ′_c)ᵀ(μ_c − μ′_c).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import normalize

from semobridge_ext.fewshot.estimator import CHUNK
from semobridge_ext.fewshot.growing import weighted_sums


class Moments:
    """Of the unit rows of each class: counts [C], means [C, D], scatter [D, D]."""

    def __init__(self, classes: int, width: int) -> None:
        self.counts = torch.zeros(classes, dtype=torch.float64)
        self.means = torch.zeros(classes, width, dtype=torch.float64)
        self.scatter = torch.zeros(width, width, dtype=torch.float64)

    @property
    def total(self) -> float:
        """Σ w."""
        return float(self.counts.sum())

    def added(self, x: Tensor, codes: Tensor, weights: Tensor | None) -> Moments:
        """These and those of further shots."""
        counts, means, scatter = _of(x, codes, len(self.counts), weights)
        made = Moments(len(counts), means.shape[1])
        made.counts, made.scatter = self.counts + counts, self.scatter + scatter
        both = (self.counts > 0) & (counts > 0)
        if bool(both.any()):
            away = (means - self.means)[both]
            share = (self.counts * counts / made.counts)[both].unsqueeze(1)
            made.scatter.addmm_(away.T, away * share)
        joined = self.means * self.counts.unsqueeze(1) + means * counts.unsqueeze(1)
        joined = joined / torch.where(both, made.counts, 1.0).unsqueeze(1)
        # A class that is in one of both keeps that mean, to the bit.
        alone = torch.where((counts > 0).unsqueeze(1), means, self.means)
        made.means = torch.where(both.unsqueeze(1), joined, alone)
        return made


def _of(
    x: Tensor, codes: Tensor, classes: int, weights: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:  # [C], [C, D], [D, D]
    width = x.shape[1]
    sums = torch.zeros(classes, width, dtype=torch.float64)
    counts = torch.zeros(classes, dtype=torch.float64)
    for rows, labels, own in _blocks(x, codes, weights):
        part, number = weighted_sums(rows, labels, classes, own)
        sums, counts = sums.add_(part), counts.add_(number)
    means = sums / torch.where(counts > 0, counts, 1.0).unsqueeze(1)
    scatter = torch.zeros(width, width, dtype=torch.float64)
    for rows, labels, own in _blocks(x, codes, weights):
        rest = rows.sub_(means[labels])
        scatter.addmm_((rest if own is None else rest * own.unsqueeze(1)).T, rest)
    return counts, means, scatter


def _blocks(
    x: Tensor, codes: Tensor, weights: Tensor | None
) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    own = None if weights is None else weights.split(CHUNK)
    for i, (part, labels) in enumerate(zip(x.split(CHUNK), codes.split(CHUNK), strict=True)):
        rows = normalize(part.to("cpu", torch.float64), dim=1)
        yield rows, labels, None if own is None else own[i]

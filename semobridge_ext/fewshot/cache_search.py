"""The search of a cache model's α, β (and γ) on validation data.

α enters linearly: with t and k a row's text logits and cache sums, label y and another class c, the row is
right while ``t_y − t_c > α·(k_c − k_y)`` for every c, that is for α between two bounds. One pass over [N, C]
therefore serves any number of α.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from semobridge_ext.fewshot.published import Grid

NO_BOUND = float("inf")


class Found(NamedTuple):
    """Rows that are right, and with which values."""

    correct: int
    alpha: float
    beta: float
    gamma: float | None


def alpha_bounds(
    text: Tensor,  # [N, C] logits
    cache: Tensor,  # [N, C] sums
    codes: Tensor,  # [N] int64 labels
) -> tuple[Tensor, Tensor]:  # [N] each, float64
    """The open interval of α > 0 in which a row is right; equal logits go to the lower class."""
    own = codes.unsqueeze(1)
    lead = text.gather(1, own).double() - text.double()  # of the label
    rise = cache.double() - cache.gather(1, own).double()  # of the others, a unit of α
    ratio = lead / rise
    low = torch.where(rise < 0, ratio, -NO_BOUND)
    high = torch.where(rise > 0, ratio, NO_BOUND)
    before = torch.arange(text.shape[1], device=text.device) < own
    # The cache does not tell the two apart. The label itself stands here too, with lead 0 and not before.
    high[(rise == 0) & ((lead < 0) | ((lead == 0) & before))] = -NO_BOUND
    return low.amax(dim=1), high.amin(dim=1)


def search(
    grid: Grid,
    parts: list[tuple[Tensor, Tensor, Tensor]],  # unit rows [n, D], their text logits [n, C], labels [n]
    caches: Callable[[Tensor, float, tuple[float, ...]], Tensor],  # (rows, β, γs) -> [1 or len(γs), n, C]
    start: Found | None,
    progress: bool,
) -> Found:
    """The first best of the grid, in the order β, α, γ; ``start`` is kept unless a value is better."""
    from tqdm import tqdm

    best = start or Found(-1, 0.0, 0.0, None)
    gammas = grid.gammas or (None,)
    alphas = torch.tensor(grid.alphas, dtype=torch.float64)
    bar: Iterable[float] = tqdm(grid.betas, desc="search", disable=not progress)
    for beta in bar:
        correct = torch.zeros(len(alphas), len(gammas), dtype=torch.int64)
        for unit, text, codes in parts:
            for g, cache in enumerate(caches(unit, beta, grid.gammas)):
                low, high = (bound.cpu().unsqueeze(1) for bound in alpha_bounds(text, cache, codes))
                correct[:, g] += ((low < alphas) & (alphas < high)).sum(dim=0)
        most = int(correct.max())
        if most > best.correct:
            at = int((correct.flatten() == most).nonzero()[0])
            a, g = divmod(at, len(gammas))
            best = Found(most, grid.alphas[a], beta, gammas[g])
    return best

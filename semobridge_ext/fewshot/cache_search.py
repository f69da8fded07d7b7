"""The search of a cache model's α, β (and γ) on validation data.

α enters linearly: with t and k a row's text logits and cache sums, label y and another class c, the row is
right while ``t_y − t_c > α·(k_c − k_y)`` for every c, that is for α between two bounds. One pass over [N, C]
therefore serves any number of α.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from semobridge_ext._ops.count_correct.cache_grid import CacheGrid
from semobridge_ext._ops.support_logits.op import support_logits
from semobridge_ext.fewshot.published import Grid
from semobridge_ext.runtime.choice import resolve

NO_BOUND = float("inf")


class Found(NamedTuple):
    """Rows that are right, and with which values."""

    correct: int
    alpha: float
    beta: float
    gamma: float | None


class Keys(NamedTuple):
    """What a cache sums over, for each of the weights that are searched."""

    keys: Tensor  # [S, d]
    labels: Tensor  # [S] int64
    classes: int
    weights: Tensor | None  # [1 or len(γs), S]
    project: Callable[[Tensor], Tensor]  # unit rows [n, D] -> [n, d], the space of the keys


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
    keys: Keys,  # with a set of weights for each γ
    start: Found | None,
    progress: bool,
) -> Found:
    """The first best of the grid, in the order β, α, γ; ``start`` is kept unless a value is better.

    On a CPU one kernel counts for the whole grid, block by block of rows; elsewhere the sums of one β
    and γ are made after those of the other.
    """
    device = parts[0][0].device if parts else torch.device("cpu")
    if resolve("tune", device) == "native" and device.type == "cpu":
        correct = _at_once(grid, parts, keys, progress)
    else:
        correct = _one_by_one(grid, parts, keys, progress)
    best = start or Found(-1, 0.0, 0.0, None)
    if not correct.numel() or int(correct.max()) <= best.correct:
        return best
    most = int(correct.max())
    at = int((correct.flatten() == most).nonzero()[0])
    b, a, g = (int(i) for i in torch.unravel_index(torch.tensor(at), correct.shape))
    return Found(most, grid.alphas[a], grid.betas[b], grid.gammas[g] if grid.gammas else None)


def _at_once(
    grid: Grid, parts: list[tuple[Tensor, Tensor, Tensor]], keys: Keys, progress: bool
) -> Tensor:  # [B, A, G]
    from tqdm import tqdm

    counter = CacheGrid(keys.keys, keys.labels, keys.classes, keys.weights)
    correct = torch.zeros(len(grid.betas), counter.sets, len(grid.alphas), dtype=torch.int64)
    for unit, text, codes in tqdm(parts, desc="search", disable=not progress):
        correct += counter.count(keys.project(unit), text, codes, grid.betas, grid.alphas)
    return correct.transpose(1, 2)


def _one_by_one(
    grid: Grid, parts: list[tuple[Tensor, Tensor, Tensor]], keys: Keys, progress: bool
) -> Tensor:  # [B, A, G]
    from tqdm import tqdm

    alphas = torch.tensor(grid.alphas, dtype=torch.float64)
    sets = (None,) if keys.weights is None else keys.weights.unbind()
    projected = [(keys.project(unit), text, codes) for unit, text, codes in parts]
    correct = torch.zeros(len(grid.betas), len(alphas), len(sets), dtype=torch.int64)
    for b, beta in enumerate(tqdm(grid.betas, desc="search", disable=not progress)):
        for rows, text, codes in projected:
            for g, weights in enumerate(sets):
                cache = support_logits(rows, keys.keys, keys.labels, keys.classes, beta=beta, weights=weights)
                low, high = (bound.cpu().unsqueeze(1) for bound in alpha_bounds(text, cache, codes))
                correct[b, :, g] += ((low < alphas) & (alphas < high)).sum(dim=0)
    return correct

"""The oracle of rank_counts: every score of a query compared with every marked one."""

from __future__ import annotations

import torch
from torch import Tensor


def rank_counts(
    query: Tensor,  # [D]
    gallery: Tensor,  # [G, D]
    rows: Tensor,  # [M] int64 gallery rows
    *,
    exclude: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # [M] scores, [M] int64 greater, [M] int64 equal; scores ascending
    """``greater[i] = #{j : ⟨q, g_j⟩ > ⟨q, g_i⟩}``, ``equal[i] = #{j : ⟨q, g_j⟩ = ⟨q, g_i⟩}``; NaN is −∞.

    The excluded gallery row is neither marked nor counted.
    """
    scores = (gallery @ query).nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    counted = torch.arange(len(gallery)) != (-1 if exclude is None else exclude)
    marked = scores[rows[counted[rows]]].sort().values
    others = scores[counted]
    greater = (others > marked.unsqueeze(1)).sum(1)
    equal = (others == marked.unsqueeze(1)).sum(1)
    return marked, greater, equal

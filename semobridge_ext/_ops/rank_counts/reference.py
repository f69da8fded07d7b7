"""The oracle of rank_counts: every marked row's score against the whole ranking (docs/methods.md §7)."""

from __future__ import annotations

import torch
from torch import Tensor


def rank_counts(
    scores: Tensor,  # [G] of one query
    marked: Tensor,  # [M] int64 gallery rows
    exclude: int = -1,  # a row that does not count at all
) -> tuple[Tensor, Tensor, Tensor]:  # each [M less the excluded]: scores ascending, greater, equal
    """How many rows score higher than each marked one, and how many the same; NaN ranks with −inf."""
    ranked = scores.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    others = ranked[torch.arange(len(scores)) != exclude]
    own = ranked[marked[marked != exclude]].sort().values
    greater = (others > own.unsqueeze(1)).sum(1)
    equal = (others == own.unsqueeze(1)).sum(1)
    return own, greater, equal

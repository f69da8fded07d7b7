"""Which keys each row of tree_attention sees."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Paths(NamedTuple):
    """Row n sees ``nodes[path_of[n], :counts[n]]``. P paths of L places, N rows."""

    nodes: Tensor  # [P, L] int32, rows of keys and values; beyond a path's end any valid row
    path_of: Tensor  # [N] int32
    counts: Tensor  # [N] int32, 1 .. L

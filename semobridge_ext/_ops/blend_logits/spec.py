"""What goes into a blend and what it is made of."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class BlendParams(NamedTuple):
    """The blend's parameters: the weights' exponent s, three sharpnesses, three weights."""

    s: float = 0.0
    alpha: float = 1.0
    beta: float = 1.0
    gamma: float = 1.0
    lambda1: float = 1.0
    lambda2: float = 1.0
    lambda3: float = 1.0


class Similarities(NamedTuple):
    """The three blocks of cosines, each [N, C]."""

    text: Tensor  # z1, query against text
    bridged_support: Tensor  # z2, query against bridged prototypes
    bridged_query: Tensor  # z3, bridged query against raw prototypes

"""What SeMoBridge-T minimises, and the rows that it trains on.

Letters: N rows (shots) · C classes · D feature width · T width of the text projection.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

Chunk = tuple[int, int]  # the first of its classes and the one behind the last


class LossWeights(NamedTuple):
    """Factors of the five losses; 0 leaves one out."""

    image: float = 0.5
    text_projected: float = 0.25
    text_embedded: float = 0.25
    consistency: float = 0.1
    bias: float = 0.1


class Batch(NamedTuple):
    """Rows in class order."""

    labels: Tensor  # [N] int64, ascending
    offsets: Tensor  # [C + 1] int64
    bounds: list[int]  # the offsets on the host
    counts: Tensor  # [C, 1] shots of each class
    width: int  # T

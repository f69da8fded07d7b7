"""The learning rates of SeMoBridge-T."""

from __future__ import annotations

import math
from typing import NamedTuple


class Schedule(NamedTuple):
    """Step k of the warm-up takes lr·k/warmup, and step 0 ``start``, which is not zero; then the rate is
    constant (``floor`` = 1) or falls by a cosine to floor·lr.

    So Dassl's scheduler does it, with which SeMoBridge was trained: no line from ``start`` to ``lr``.
    """

    steps: int
    lr: float
    warmup: int
    start: float = 1e-5
    floor: float = 1.0

    def rate(self, step: int) -> float:
        """Of step 0, 1, …"""
        if step < self.warmup:
            return self.lr * step / self.warmup if step else self.start
        if self.floor == 1.0:
            return self.lr
        part = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.lr * (self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * part)))


# "paper": docs/methods.md §2. "fast": a tenth of the steps; docs/guides/fewshot.md compares the two.
PRESETS = {
    "paper": Schedule(steps=5000, lr=1.5e-4, warmup=500),
    "fast": Schedule(steps=500, lr=1e-3, warmup=25, floor=0.1),
}

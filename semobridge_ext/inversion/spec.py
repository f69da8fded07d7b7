"""What an inversion returns."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from semobridge_ext import _arrays

_TENSORS = ("tokens", "features", "losses", "steps_done")


@dataclass(frozen=True)
class Inversion:
    """What an inversion found; :func:`semobridge_ext.oti` and ``ovi`` return it.

    For features in a NumPy array its parts are arrays.

    Args:
        tokens: [B, R, T] (OVI: [B, P, V]) the learned vectors, float32 (float64 for a float64 model), as
            all but ``steps_done``.
        features: [B, D] their features, unit rows.
        losses: [steps] mean over the samples of 1 − cos before each step.
        recorded: step → [B, D] unit features of the tokens after that many steps.
        steps_done: [B] int64 steps that each sample took (fewer after early stopping or an interruption).
        interrupted: True after Ctrl-C; tokens and features then hold the first rows only.
        engine: what ran it: "native", "torch" or "eager" (docs/engines/tower_descent.md), "model" for the
            model's own pass; of a finished file what would run it now.

    Raises:
        dataclasses.FrozenInstanceError: on assignment to a field.

    Numerics: what the descent computed, without a gradient; nothing is rounded here.

    Memory: B·(R·T + D) numbers, and B·D for each recorded step.

    Example:
        >>> import torch
        >>> unit, losses = torch.eye(3)[:2], torch.tensor([0.9, 0.4])
        >>> inv = Inversion(torch.zeros(2, 1, 8), unit, losses, {}, torch.full((2,), 2))
        >>> inv.features.shape, inv.interrupted
        (torch.Size([2, 3]), False)
    """

    tokens: Tensor
    features: Tensor
    losses: Tensor
    recorded: dict[int, Tensor]
    steps_done: Tensor
    interrupted: bool = False
    engine: str = ""

    def as_arrays(self) -> Inversion:
        """The same for a caller who passed arrays."""
        parts = {name: _arrays.array(getattr(self, name)) for name in _TENSORS}
        recorded = {step: _arrays.array(rows) for step, rows in self.recorded.items()}
        return replace(self, recorded=recorded, **parts)

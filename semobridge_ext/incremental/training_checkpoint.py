"""What RETune writes while it trains a task, to continue from."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from semobridge_ext import _checkpoint

FORMAT = "semobridge-ext RETune checkpoint 1"
_PARTS = ("", ".first", ".second")


class State(Protocol):
    """What a file keeps of a trainer."""

    parameters: dict[str, Tensor]
    moments: dict[str, tuple[Tensor, Tensor]]
    losses: Tensor  # [epochs]
    epoch: int
    steps: int


class Checkpoint(_checkpoint.Checkpoint):
    """One task's state in a file; `path` and `facts` as the base says."""

    def __init__(self, where: str, path: Any, facts: dict[str, Any]) -> None:
        super().__init__(where, FORMAT, "task", path, facts)

    def write(self, state: State) -> None:
        tensors = {"losses": state.losses}
        for name, p in state.parameters.items():
            parts = (p, *state.moments[name])
            tensors |= {f"{name}{part}": t for part, t in zip(_PARTS, parts, strict=True)}
        self.save(tensors, [state.epoch, state.steps])

    @torch.no_grad()
    def resume(self, state: State) -> None:
        """Moves the trainer to where the file was written; the next epochs are those of an unbroken run."""
        names = ("losses", *(f"{name}{part}" for name in state.parameters for part in _PARTS))
        tensors, (state.epoch, state.steps) = self.load(names)
        state.losses.copy_(tensors["losses"])
        for name, p in state.parameters.items():
            parts = (p, *state.moments[name])
            for part, t in zip(_PARTS, parts, strict=True):
                t.copy_(tensors[f"{name}{part}"])

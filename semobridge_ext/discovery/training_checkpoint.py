"""What SpectralGCD.fit writes while it trains, to continue from."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from semobridge_ext import _checkpoint

FORMAT = "semobridge-ext SpectralGCD checkpoint 1"


class State(Protocol):
    """What a file keeps of a trainer."""

    parameters: dict[str, Tensor]
    momenta: dict[str, Tensor]
    losses: Tensor  # [epochs]
    epoch: int


class Checkpoint(_checkpoint.Checkpoint):
    """One run's state in a file; `path` and `facts` as the base says."""

    def __init__(self, path: Any, facts: dict[str, Any]) -> None:
        super().__init__("SpectralGCD.fit", FORMAT, "images", path, facts)

    def write(self, state: State) -> None:
        tensors = {"losses": state.losses}
        for name, p in state.parameters.items():
            tensors |= {name: p.detach(), f"{name}.momentum": state.momenta[name]}
        self.save(tensors, state.epoch)

    @torch.no_grad()
    def resume(self, state: State) -> None:
        """Moves the trainer to where the file was written; the next epochs are those of an unbroken run."""
        names = ("losses", *(f"{n}{part}" for n in state.parameters for part in ("", ".momentum")))
        tensors, state.epoch = self.load(names)
        state.losses.copy_(tensors["losses"])
        for name, p in state.parameters.items():
            p.copy_(tensors[name])
            state.momenta[name].copy_(tensors[f"{name}.momentum"])

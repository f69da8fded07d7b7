"""What SpectralGCD.fit writes while it trains, to continue from."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from semobridge_ext import _digest, _files, _locks

FORMAT = "semobridge-ext SpectralGCD checkpoint 1"
_WHERE = "SpectralGCD.fit"


class State(Protocol):
    """What a file keeps of a trainer."""

    parameters: dict[str, Tensor]
    momenta: dict[str, Tensor]
    losses: Tensor  # [epochs]
    epoch: int


class Checkpoint:
    """One run's state in a file.

    Args:
        path: of the file.
        facts: everything that the training depends on, by the names that ``fit`` and the constructor
            have for it. A file of other facts is refused, and the message says which differ.
    """

    def __init__(self, path: Any, facts: dict[str, Any]) -> None:
        self.path, self.stamp = path, _digest.stamp(facts)

    def exists(self) -> bool:
        return os.path.exists(self.path)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keeps other runs off the file, which would overwrite it in turns."""
        with _locks.held(_WHERE, "checkpoint", self.path, f"{os.fspath(self.path)}.lock"):
            yield

    def write(self, state: State) -> None:
        tensors = {"losses": state.losses}
        for name, p in state.parameters.items():
            tensors |= {name: p.detach(), f"{name}.momentum": state.momenta[name]}
        epoch = json.dumps(state.epoch)
        meta = {"stamp": json.dumps(self.stamp), "epoch": epoch}
        meta |= {"format": FORMAT, "content": _digest.digest([tensors, epoch])}
        _files.save_tensors(self.path, {n: t.clone() for n, t in tensors.items()}, meta)

    def _read(self, names: tuple[str, ...]) -> tuple[dict[str, Tensor], dict[str, str]]:
        required = ("stamp", "epoch", "content")
        remedy = "remove it and train again, or finish the run with the version that began it"
        return _files.load_tensors(_WHERE, self.path, FORMAT, names, required, remedy)

    def _damaged(self) -> ValueError:
        return ValueError(
            f"{_WHERE}: checkpoint must hold what was written, got {self.path} with other bytes; "
            "remove it and train again"
        )

    def _stamp_of(self, text: str) -> dict[str, Any]:
        try:
            found = _files.parse_json(text)
        except ValueError as error:
            raise self._damaged() from error
        if not isinstance(found, dict):
            raise self._damaged()
        return found

    @torch.no_grad()
    def resume(self, state: State) -> None:
        """Moves the trainer to where the file was written; the next epochs are those of an unbroken run."""
        _, meta = self._read(())
        if changed := _digest.changes(self._stamp_of(meta["stamp"]), self.stamp):
            raise ValueError(
                f"{_WHERE}: checkpoint must come from the same images and settings, got {self.path} of "
                f"another run, with other {changed}; choose another name or remove it"
            )
        names = ("losses", *(f"{n}{part}" for n in state.parameters for part in ("", ".momentum")))
        tensors, meta = self._read(names)
        if _digest.digest([tensors, meta["epoch"]]) != meta["content"]:
            raise self._damaged()
        state.epoch = json.loads(meta["epoch"])
        state.losses.copy_(tensors["losses"])
        for name, p in state.parameters.items():
            p.copy_(tensors[name])
            state.momenta[name].copy_(tensors[f"{name}.momentum"])

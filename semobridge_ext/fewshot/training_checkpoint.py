"""What SeMoBridgeT.fit keeps while it trains: the best parameters, and a file to continue from."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from semobridge_ext import _digest, _files, _locks
from semobridge_ext._engines.bridge_training.step import BridgeTrainer

FORMAT = "semobridge-ext SeMoBridgeT checkpoint 2"
_AGAIN = "remove it and train again"


@dataclass
class Best:
    """The parameters with the first best accuracy on the validation data."""

    step: int  # steps behind them
    accuracy: float = -1.0
    parameters: dict[str, Tensor] = field(default_factory=dict)
    looks: list[tuple[int, float]] = field(default_factory=list)  # (step, accuracy)

    def look(self, step: int, accuracy: float, parameters: dict[str, Tensor]) -> None:
        """Keeps a copy of the parameters if they are better than all before."""
        self.looks.append((step, accuracy))
        if accuracy > self.accuracy:
            self.accuracy, self.step = accuracy, step
            self.parameters = {name: p.clone() for name, p in parameters.items()}


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
        with _locks.held("SeMoBridgeT.fit", "checkpoint", self.path, f"{os.fspath(self.path)}.lock"):
            yield

    def write(self, trainer: BridgeTrainer, best: Best) -> None:
        tensors = {"losses": trainer.losses}
        for name, p in trainer.parameters.items():
            first, second = trainer.state[name]
            tensors |= {name: p, f"{name}.first": first, f"{name}.second": second}
            tensors[f"{name}.best"] = best.parameters.get(name, p)
        progress = json.dumps([trainer.steps, best.step, best.accuracy, bool(best.parameters), best.looks])
        meta = {"stamp": json.dumps(self.stamp), "progress": progress}
        meta |= {"format": FORMAT, "content": _digest.digest([tensors, progress])}
        _files.save_tensors(self.path, {n: t.clone() for n, t in tensors.items()}, meta)

    def _read(self, names: tuple[str, ...]) -> tuple[dict[str, Tensor], dict[str, str]]:
        required = ("stamp", "progress", "content")
        remedy = "remove it and train again, or finish the run with the version that began it"
        return _files.load_tensors(
            "SeMoBridgeT.fit", self.path, FORMAT, names, required, remedy, damaged=_AGAIN
        )

    def _damaged(self) -> ValueError:
        return ValueError(
            f"SeMoBridgeT.fit: checkpoint must hold what was written, got {self.path} with other bytes; "
            f"{_AGAIN}"
        )

    def _stamp_of(self, text: str) -> dict[str, Any]:
        try:
            found = _files.parse_json(text)
        except ValueError as error:
            raise self._damaged() from error
        if not isinstance(found, dict):
            raise self._damaged()
        return found

    def resume(self, trainer: BridgeTrainer) -> Best:
        """Moves the trainer to where the file was written; the next steps are those of an unbroken run."""
        _, meta = self._read(())
        if changed := _digest.changes(self._stamp_of(meta["stamp"]), self.stamp):
            raise ValueError(
                f"SeMoBridgeT.fit: checkpoint must come from the same shots and settings, got {self.path} of "
                f"another run, with other {changed}; choose another name or remove it"
            )
        parts = ("", ".first", ".second", ".best")
        names = ("losses", *(f"{n}{part}" for n in trainer.parameters for part in parts))
        tensors, meta = self._read(names)
        if _digest.digest([tensors, meta["progress"]]) != meta["content"]:
            raise self._damaged()
        steps, step, accuracy, has_best, looks = json.loads(meta["progress"])
        trainer.steps = steps
        trainer.losses.copy_(tensors["losses"])
        for name, p in trainer.parameters.items():
            p.copy_(tensors[name])
            trainer.state[name][0].copy_(tensors[f"{name}.first"])
            trainer.state[name][1].copy_(tensors[f"{name}.second"])
        kept = {name: tensors[f"{name}.best"].to(p.device) for name, p in trainer.parameters.items()}
        best = Best(step, accuracy, looks=[(at, found) for at, found in looks])
        if has_best:
            best.parameters = kept
        return best

"""What SeMoBridgeT.fit keeps while it trains: the best parameters, and a file to continue from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from semobridge_ext import _checkpoint
from semobridge_ext._engines.bridge_training.step import BridgeTrainer

FORMAT = "semobridge-ext SeMoBridgeT checkpoint 3"


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


class Checkpoint(_checkpoint.Checkpoint):
    """One run's state in a file; `path` and `facts` as the base says."""

    def __init__(self, path: Any, facts: dict[str, Any]) -> None:
        super().__init__("SeMoBridgeT.fit", FORMAT, "shots", path, facts)

    def write(self, trainer: BridgeTrainer, best: Best) -> None:
        tensors = {"losses": trainer.losses}
        for name, p in trainer.parameters.items():
            first, second = trainer.state[name]
            tensors |= {name: p, f"{name}.first": first, f"{name}.second": second}
            tensors[f"{name}.best"] = best.parameters.get(name, p)
        self.save(tensors, [trainer.steps, best.step, best.accuracy, bool(best.parameters), best.looks])

    def resume(self, trainer: BridgeTrainer) -> Best:
        """Moves the trainer to where the file was written; the next steps are those of an unbroken run."""
        parts = ("", ".first", ".second", ".best")
        names = ("losses", *(f"{n}{part}" for n in trainer.parameters for part in parts))
        tensors, (steps, step, accuracy, has_best, looks) = self.load(names)
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

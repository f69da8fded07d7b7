"""The training of a context: epoch after epoch, by SGD with momentum, from where a checkpoint stands.

t = text(v)    logits = κ·norm(f)·norm(t)ᵀ    g = ∂L/∂v + decay·v    m ← momentum·m + g    v ← v − lr·m
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import normalize

from semobridge_ext import _checkpoint, _errors
from semobridge_ext.prompts.prompt_features import Prompts
from semobridge_ext.prompts.schedule import rate
from semobridge_ext.prompts.settings import Settings


class Step(NamedTuple):
    prompts: Prompts
    images: Tensor  # [B, D] unit rows
    loss: Callable[[Tensor], Tensor]  # of the logits [B, C]


class Task(Protocol):
    """What is learned from, one step after another."""

    def steps(self, epoch: int) -> Iterator[Step]: ...

    def facts(self) -> dict[str, Any]:
        """What the steps depend on, by the names of ``fit`` and the constructor."""


class Trainer:
    def __init__(
        self, where: str, task: Task, settings: Settings, vectors: Tensor, scale: float,
        facts: dict[str, Any],
    ) -> None:  # fmt: skip
        self.where, self.task, self.settings, self.scale = where, task, settings, scale
        self.vectors, self.momentum = vectors, torch.zeros_like(vectors)  # [V, T]
        self.losses = torch.zeros(settings.epochs, dtype=torch.float64)
        self.epoch = 0  # epochs behind the vectors
        self._facts = {**facts, "logit_scale": scale}

    def facts(self) -> dict[str, Any]:
        return {**self.settings._asdict(), **self._facts, **self.task.facts()}

    def run_epoch(self) -> None:
        """Its loss is the mean over the steps; the host waits once an epoch for it."""
        lr = rate(self.epoch, self.settings.epochs, self.settings.lr, self.settings.first_lr)
        total, count = torch.zeros((), dtype=torch.float64, device=self.vectors.device), 0
        for step in self.task.steps(self.epoch):
            total += self._step(step, lr)
            count += 1
        loss = float(total) / count
        self.losses[self.epoch] = loss
        self.epoch += 1
        if not math.isfinite(loss):
            raise self._diverged("the loss", str(loss))

    def gradient(self, step: Step) -> tuple[Tensor, Tensor]:  # scalar, [V, T]
        features = step.prompts.forward(self.vectors)
        with torch.enable_grad():
            leaf = features.requires_grad_()
            loss = step.loss(self.scale * step.images @ normalize(leaf, dim=1).T)
            (grad,) = torch.autograd.grad(loss, leaf)
        return loss.detach(), step.prompts.backward(grad, self.vectors)

    def _step(self, step: Step, lr: float) -> Tensor:
        s = self.settings
        loss, grad = self.gradient(step)
        self.momentum.mul_(s.momentum).add_(grad.add_(self.vectors, alpha=s.weight_decay))
        self.vectors.sub_(self.momentum, alpha=lr)
        return loss

    def _diverged(self, what: str, got: str) -> ValueError:
        s = self.settings
        got, remedy = f"{got} in epoch {self.epoch} of {s.epochs}", f"lower lr={s.lr:g}"
        return ValueError(_errors.message(self.where, what, "stay finite", got, remedy))

    def check_finite(self) -> None:
        """The last step may spoil vectors that no loss has seen."""
        if not bool(torch.isfinite(self.vectors).all()):
            raise self._diverged("the context", "NaN or infinity")


class Checkpoint(_checkpoint.Checkpoint):
    """One run's state in a file."""

    _NAMES = ("losses", "context", "momentum")

    def __init__(self, path: Any, trainer: Trainer) -> None:
        kind = trainer.where.partition(".")[0]
        super().__init__(
            trainer.where, f"semobridge-ext {kind} checkpoint 1", "images", path, trainer.facts()
        )

    def write(self, trainer: Trainer) -> None:
        state = (trainer.losses, trainer.vectors, trainer.momentum)
        self.save(dict(zip(self._NAMES, state, strict=True)), trainer.epoch)

    def resume(self, trainer: Trainer) -> None:
        """Moves the trainer to where the file was written; the next epochs are those of an unbroken run."""
        tensors, trainer.epoch = self.load(self._NAMES)
        for name, own in zip(self._NAMES, (trainer.losses, trainer.vectors, trainer.momentum), strict=True):
            own.copy_(tensors[name])


def train(trainer: Trainer, checkpoint: Any, every: int, progress: bool) -> None:
    """To the last epoch; a checkpoint is written every so many epochs, and after the last."""
    from tqdm import tqdm

    file = None if checkpoint is None else Checkpoint(checkpoint, trainer)
    epochs = trainer.settings.epochs
    with nullcontext() if file is None else file.held():
        if file is not None and file.exists():
            file.resume(trainer)
        bar = tqdm(total=epochs, initial=trainer.epoch, desc="train", unit="epoch", disable=not progress)
        with bar:
            while trainer.epoch < epochs:
                trainer.run_epoch()
                bar.update()
                bar.set_postfix(loss=f"{float(trainer.losses[trainer.epoch - 1]):.4f}")
                if trainer.epoch == epochs:
                    trainer.check_finite()
                if file is not None and (trainer.epoch % every == 0 or trainer.epoch == epochs):
                    file.write(trainer)

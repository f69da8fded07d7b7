"""The training of one task: epoch after epoch by AdamW, from where a checkpoint stands."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from semobridge_ext import _errors, _numbers
from semobridge_ext.incremental import adaptors
from semobridge_ext.incremental.adaptors import Form, Parameters
from semobridge_ext.incremental.settings import Settings
from semobridge_ext.incremental.training_checkpoint import Checkpoint
from semobridge_ext.runtime import adamw


class TaskData(NamedTuple):
    number: int  # tasks that were trained before
    features: Tensor  # [n, D] unit rows
    labels: Tensor  # [n, k] int8, −1 not known
    prompts: Tensor  # [k, 2, D] unit rows


class Trainer:
    def __init__(self, where: str, data: TaskData, form: Form, start: Parameters, settings: Settings) -> None:
        rows = data.features
        self.where, self.data, self.form, self.settings = where, data, form, settings
        self.start = {name: p.to(rows.device, rows.dtype, copy=True) for name, p in start.items()}
        self.parameters = {name: p.clone() for name, p in self.start.items()}
        self.moments = {n: (torch.zeros_like(p), torch.zeros_like(p)) for n, p in self.start.items()}
        self.losses = torch.zeros(settings.epochs, dtype=torch.float64)
        self.epoch = self.steps = 0  # behind the parameters

    def facts(self) -> dict[str, Any]:
        """What the training depends on, by the names of the constructor and of ``partial_fit``."""
        data = self.data
        return {
            **self.form._asdict(), **self.settings._asdict(), "task": data.number, "X": data.features,
            "Y": data.labels, "prompt_features": data.prompts, "adaptors": list(self.start.values()),
        }  # fmt: skip

    def batches(self) -> tuple[Tensor, ...]:
        """Rows with a known label, in an order that depends on seed, task and epoch alone."""
        rows = (self.data.labels >= 0).any(dim=1).nonzero().flatten()
        if self.settings.batch_size is None:
            return (rows,)
        generator = torch.Generator()
        generator.manual_seed(_numbers.seed_of(self.settings.seed, self.data.number, self.epoch))
        return rows[torch.randperm(len(rows), generator=generator)].split(
            min(self.settings.batch_size, len(rows))
        )

    def run_epoch(self) -> None:
        """Its loss is the mean over the steps; the host waits once an epoch for it."""
        s, device = self.settings, self.data.features.device
        batches = self.batches()
        total = torch.zeros((), dtype=torch.float64, device=device)
        rate = s.lr * 0.5 * (1 + math.cos(math.pi * self.epoch / s.epochs))
        for rows in batches:
            total += self._step(rows, rate)
        self.losses[self.epoch] = loss = float(total) / len(batches)
        self.epoch += 1
        if not math.isfinite(loss):
            raise self._diverged("the loss", str(loss))

    def _step(self, rows: Tensor, rate: float) -> Tensor:
        labels = self.data.labels[rows].to(self.data.features.device)
        with torch.enable_grad():
            leaves = {name: p.detach().requires_grad_() for name, p in self.parameters.items()}
            x = self.data.features[rows.to(self.data.features.device)]
            z = adaptors.logits(leaves, self.form, x, self.data.prompts)
            known = labels >= 0
            loss = binary_cross_entropy_with_logits(z[known], labels[known].to(z.dtype))
            grads = torch.autograd.grad(loss, list(leaves.values()))
        self.steps += 1
        rate_now, root = adamw.corrections(rate, self.steps)
        keep = 1 - rate * self.settings.weight_decay
        for name, grad in zip(leaves, grads, strict=True):
            first, second = self.moments[name]
            adamw.update(self.parameters[name], grad, first, second, keep=keep, rate=rate_now, root=root)
        return loss.detach().double()

    def _diverged(self, what: str, got: str) -> ValueError:
        told = f"{got} in epoch {self.epoch} of {self.settings.epochs}"
        remedy = f"lower lr={self.settings.lr:g}"
        return ValueError(_errors.message(self.where, what, "stay finite", told, remedy))

    def check_finite(self) -> None:
        """The last step may spoil parameters that no loss has seen."""
        if not all(bool(torch.isfinite(p).all()) for p in self.parameters.values()):
            raise self._diverged("the adaptors", "NaN or infinity")


def train(trainer: Trainer, checkpoint: Any, every: int, progress: bool) -> None:
    """To the last epoch; a checkpoint is written every so many epochs, and after the last."""
    from tqdm import tqdm

    file = None if checkpoint is None else Checkpoint(trainer.where, checkpoint, trainer.facts())
    epochs, number = trainer.settings.epochs, trainer.data.number
    with nullcontext() if file is None else file.held():
        if file is not None and file.exists():
            file.resume(trainer)
        bar = tqdm(
            total=epochs, initial=trainer.epoch, desc=f"task {number + 1}", unit="epoch", disable=not progress
        )
        with bar:
            while trainer.epoch < epochs:
                trainer.run_epoch()
                bar.update()
                bar.set_postfix(loss=f"{float(trainer.losses[trainer.epoch - 1]):.4f}")
                if trainer.epoch == epochs:
                    trainer.check_finite()
                if file is not None and (trainer.epoch % every == 0 or trainer.epoch == epochs):
                    file.write(trainer)

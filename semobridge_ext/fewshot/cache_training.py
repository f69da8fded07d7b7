"""Training of a cache model on its own shots: mini-batches, AdamW, a cosine, a file to go on from.

As the authors of Tip-Adapter-F and APE-T do it, but for two things: the last step is kept, where they
keep the best epoch on the test part (ImageNet: the validation part, which they test on), and the shots are
features that were computed once, where they draw a new crop of every image in each epoch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from semobridge_ext import _checkpoint, _errors, _numbers


class Settings(NamedTuple):
    """What the steps depend on beside the data and the loss."""

    epochs: int
    lr: float
    eps: float
    weight_decay: float
    batch_size: int
    seed: int  # of the shuffling


def cosine_rates(lr: float, steps: int) -> list[float]:
    """Of steps 0, 1, …, from lr towards 0, rounded as torch's CosineAnnealingLR rounds them."""
    rates = [lr]
    for t in range(1, steps):
        turn = (1 + math.cos(math.pi * t / steps)) / (1 + math.cos(math.pi * (t - 1) / steps))
        rates.append(turn * rates[-1])
    return rates[:steps]


def _check_count(model: str, name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not hasattr(value, "__index__") or value < least:
        contract = f"be a whole number from {least} up"
        raise ValueError(_errors.message(f"{model}.fit", name, contract, value, "the default is one"))


class CacheTraining:
    """One training.

    Args:
        model: the estimator's name, for messages and files.
        parameters: trained in place, by name.
        loss: of rows of the shots, with the parameters as they are.
        rows: number of shots. settings: see above. remedy: what helps where the loss diverges.
    """

    def __init__(
        self,
        model: str,
        parameters: dict[str, Tensor],
        loss: Callable[[Tensor], Tensor],
        rows: int,
        settings: Settings,
        remedy: str,
    ) -> None:
        for name, least in (("epochs", 0), ("batch_size", 1)):
            _check_count(model, name, getattr(settings, name), least)
        remedy_of_seed = "the default is 0"
        _numbers.check_number(f"{model}.fit", "seed", settings.seed, whole=True, remedy=remedy_of_seed)
        settings = Settings(*map(_numbers.python, settings))
        self.model, self.parameters, self.loss, self.rows = model, parameters, loss, rows
        self.settings, self.remedy, self.epoch = settings, remedy, 0
        self.batches = -(-rows // settings.batch_size)
        steps = settings.epochs * self.batches
        self.rates, self.losses = cosine_rates(settings.lr, steps), torch.zeros(steps)
        leaves = [p.requires_grad_() for p in parameters.values()]
        self.losses = self.losses.to(leaves[0].device, leaves[0].dtype)
        self.optimizer = torch.optim.AdamW(
            leaves, lr=settings.lr, eps=settings.eps, weight_decay=settings.weight_decay
        )

    @property
    def steps(self) -> int:
        return self.epoch * self.batches

    def run(self, checkpoint: Any, every: int, facts: dict[str, Any], progress: bool) -> Tensor:  # [steps]
        """The losses before each step; the parameters are then trained and need no gradient any more.

        Args:
            checkpoint: None, or the path of a file that is written and continued from.
            every: epochs between its writes. facts: what the run depends on beside the settings.
            progress: a bar on stderr.
        """
        from tqdm import tqdm

        _check_count(self.model, "checkpoint_every", every, 1)
        file = None
        if checkpoint is not None:
            file = Checkpoint(self.model, checkpoint, {**self.settings._asdict(), **facts})
        with nullcontext() if file is None else file.held(), torch.enable_grad():
            if file is not None and file.exists():
                file.resume(self)
            shuffle = torch.Generator().manual_seed(_numbers.seed_of(self.settings.seed))
            for _ in range(self.epoch):
                torch.randperm(self.rows, generator=shuffle)
            epochs = tqdm(
                range(self.epoch, self.settings.epochs), initial=self.epoch, total=self.settings.epochs,
                desc="train", unit="epoch", disable=not progress,
            )  # fmt: skip
            for _ in epochs:
                self._epoch(torch.randperm(self.rows, generator=shuffle))
                if file is not None and self.epoch % every == 0 and self.epoch < self.settings.epochs:
                    file.write(self)
        losses = self.losses.cpu()
        self._check(losses)
        for p in self.parameters.values():
            p.requires_grad_(False)
        return losses

    def _epoch(self, order: Tensor) -> None:
        first = next(iter(self.parameters.values()))
        for i, rows in enumerate(order.split(min(int(self.settings.batch_size), len(order))), self.steps):
            self.optimizer.param_groups[0]["lr"] = self.rates[i]
            loss = self.loss(rows.to(first.device))
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.losses[i] = loss.detach()
        self.epoch += 1

    def _check(self, losses: Tensor) -> None:
        sound = all(bool(torch.isfinite(p).all()) for p in self.parameters.values())
        wild = (~torch.isfinite(losses)).nonzero()
        if sound and not len(wild):
            return
        at = int(wild[0]) + 1 if len(wild) else len(losses)
        got = f"NaN or infinity at step {at} of {len(losses)}"
        raise ValueError(_errors.message(f"{self.model}.fit", "the loss", "stay finite", got, self.remedy))


class Checkpoint(_checkpoint.Checkpoint):
    """One run's state in a file; `path` and `facts` as the base says."""

    def __init__(self, model: str, path: Any, facts: dict[str, Any]) -> None:
        super().__init__(f"{model}.fit", f"semobridge-ext {model} checkpoint 1", "shots", path, facts)

    def write(self, run: CacheTraining) -> None:
        tensors = {"losses": run.losses}
        for name, p in run.parameters.items():
            state = run.optimizer.state[p]
            tensors |= {name: p.detach()}
            tensors |= {f"{name}.first": state["exp_avg"], f"{name}.second": state["exp_avg_sq"]}
        self.save(tensors, run.epoch)

    @torch.no_grad()
    def resume(self, run: CacheTraining) -> None:
        """Moves the run to where the file was written; the next epochs are those of an unbroken run."""
        parts = ("", ".first", ".second")
        tensors, run.epoch = self.load(["losses", *(f"{n}{part}" for n in run.parameters for part in parts)])
        run.losses.copy_(tensors["losses"])
        for name, p in run.parameters.items():
            p.copy_(tensors[name])
            moments = [tensors[f"{name}{part}"].to(p.device) for part in parts[1:]]
            run.optimizer.state[p] = {
                "step": torch.tensor(float(run.steps)), "exp_avg": moments[0], "exp_avg_sq": moments[1],
            }  # fmt: skip

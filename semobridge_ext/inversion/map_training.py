"""A map trained through the tower: its predictions are judged by the features that they lead to.

    tokens(f) = norm(f)·W + b + relu(norm(f)·inner)·outer        min mean(1 − cos(tower(tokens(f)), f))

The regression gives W and b, `outer` begins at zero. One step of the tower's descent on predicted tokens,
of length zero, is a gradient with respect to these; the rest is two small products.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from semobridge_ext import _checkpoint
from semobridge_ext._engines.tower_descent.engine import TowerEngine
from semobridge_ext.inversion.ridge import Solution
from semobridge_ext.runtime import adamw
from semobridge_ext.runtime.products import add_product, product

FORMAT = "semobridge-ext InversionMap checkpoint 1"
BATCH = 32  # features a step
HELD_ROWS = 256  # at most: enough to tell two maps apart
LEAST_ROWS = 10  # of which two are held out
LOOKS = 10  # at the rows held out, and writes of the checkpoint
_RATES = {"matrix": 0.5, "offset": 0.5, "inner": 0.15, "outer": 0.15}  # in units of an inversion's


def held_rows(count: int) -> Tensor:  # [count] bool
    """Every fifth row, or fewer: rows that stand together are often of one class."""
    stride = max(5, -(-count // HELD_ROWS))
    held = torch.arange(count) % stride == stride - 1
    return held if count >= LEAST_ROWS else torch.zeros(count, dtype=torch.bool)


def drawn_batches(count: int, steps: int, generator: torch.Generator | None) -> Tensor:  # [steps, BATCH]
    """Rows of each step: shuffled passes, one after the other."""
    device = torch.device("cpu") if generator is None else generator.device
    passes = max(1, -(-steps * BATCH // count))
    order = [torch.randperm(count, generator=generator, device=device) for _ in range(passes)]
    return torch.cat(order)[: steps * BATCH].reshape(steps, BATCH).cpu()


def drawn_inner(
    width: int, hidden: int, engine: TowerEngine, generator: torch.Generator | None
) -> Tensor:  # [D, H]
    """N(0, 1): a unit row then has activations of about one."""
    device = torch.device("cpu") if generator is None else generator.device
    drawn = torch.randn(width, hidden, generator=generator, device=device, dtype=torch.float32)
    return drawn.to("cpu", engine.compute)


def loss_of(engine: TowerEngine, tokens: Tensor, targets: Tensor) -> float:
    """Mean of 1 − cos."""
    cosines = (engine.features(tokens.contiguous(), unit=True) * targets).sum(1)
    return float((1 - cosines).double().mean())


def gradient(
    engine: TowerEngine,
    tokens: Tensor,  # [S, R, T]
    targets: Tensor,  # [S, D] unit rows
) -> tuple[Tensor, Tensor]:  # [S, R, T], [S]
    """Of the mean of 1 − cos, and its terms: the first moment of AdamW after a step from zero moments."""
    first, second = torch.zeros_like(tokens), torch.zeros_like(tokens)
    losses = engine.descend(
        tokens, first, second, targets, 0, 1, grad_scale=1 / len(tokens), lr=0.0, weight_decay=0.0
    )
    return first / (1 - adamw.BETAS[0]), losses[0]


class Training:
    """One training, at the step where it stands.

    Args:
        engine: of the tower. rows: [N, D] unit rows to train on. held: [n, D] to judge on.
        batches: [steps, BATCH] of the rows. inner: [D, H] start values. start: of the regression.
        lr: of an inversion; the training's rates are parts of it and fall to zero in a line.
    """

    def __init__(
        self,
        engine: TowerEngine,
        rows: Tensor,
        held: Tensor,
        batches: Tensor,
        inner: Tensor,
        start: Solution,
        lr: float,
    ) -> None:
        self.engine, self.rows, self.held, self.batches, self.lr = engine, rows, held, batches, lr
        outer = inner.new_zeros(inner.shape[1], start.matrix.shape[1])
        given = {"matrix": start.matrix, "offset": start.offset, "inner": inner, "outer": outer}
        self.now = {n: t.to(rows.device, engine.compute, copy=True) for n, t in given.items()}
        self.first = {n: torch.zeros_like(t) for n, t in self.now.items()}
        self.second = {n: torch.zeros_like(t) for n, t in self.now.items()}
        self.best = {n: t.clone() for n, t in self.now.items()}
        self.step, self.least = 0, self.held_loss()

    def tokens(self, rows: Tensor) -> tuple[Tensor, Tensor]:  # [S, D] -> [S, R, T], [S, H]
        p = self.now
        hidden = product(rows, p["inner"]).relu_()
        found = product(rows, p["matrix"]).add_(p["offset"])
        add_product(found, hidden, p["outer"])
        return found.reshape(len(rows), self.engine.vectors, self.engine.width), hidden

    def held_loss(self) -> float:
        return loss_of(self.engine, self.tokens(self.held)[0], self.held)

    def _take_step(self) -> Tensor:
        p, rows = self.now, self.rows[self.batches[self.step].to(self.rows.device)]
        tokens, hidden = self.tokens(rows)
        g, losses = gradient(self.engine, tokens, rows)
        g = g.flatten(1)
        behind = product(g, p["outer"].T).mul_(hidden > 0)
        grads = {
            "matrix": product(rows.T, g), "offset": g.sum(0), "inner": product(rows.T, behind),
            "outer": product(hidden.T, g),
        }  # fmt: skip
        falling = 1 - self.step / len(self.batches)
        for name, grad in grads.items():
            rate, root = adamw.corrections(self.lr * _RATES[name] * falling, self.step + 1)
            adamw.update(p[name], grad, self.first[name], self.second[name], keep=1.0, rate=rate, root=root)
        self.step += 1
        return losses.mean()

    def run(self, file: Checkpoint | None, progress: bool) -> None:
        """To the last step; `best` is what had the least loss on the rows held out."""
        from tqdm.auto import tqdm

        if file is not None and file.exists():
            file.resume(self)
        every = max(1, len(self.batches) // LOOKS)
        with torch.no_grad(), tqdm(
            total=len(self.batches), initial=self.step, desc="InversionMap.fit", unit="step",
            disable=not progress,
        ) as bar:  # fmt: skip
            while self.step < len(self.batches):
                loss = self._take_step()
                bar.update()
                if self.step % every == 0 or self.step == len(self.batches):
                    bar.set_postfix(loss=f"{float(loss):.4f}", refresh=False)
                    self._look()
                    if file is not None:
                        file.write(self)

    def _look(self) -> None:
        if (found := self.held_loss()) < self.least:  # NaN is not
            self.least = found
            self.best = {n: t.clone() for n, t in self.now.items()}


_KEPT = ("now", "first", "second", "best")


class Checkpoint(_checkpoint.Checkpoint):
    """An unfinished training in a file; `path` and `facts` as the base says."""

    def __init__(self, path: Path, facts: dict[str, Any]) -> None:
        super().__init__("InversionMap.fit", FORMAT, "features", path, facts)

    def write(self, training: Training) -> None:
        tensors = {f"{part}.{n}": t for part in _KEPT for n, t in getattr(training, part).items()}
        self.save(tensors, {"step": training.step, "least": training.least})

    def resume(self, training: Training) -> None:
        """Moves the training to where the file was written; the next steps are those of an unbroken run."""
        names = [f"{part}.{n}" for part in _KEPT for n in training.now]
        tensors, progress = self.load(names)
        for part in _KEPT:
            for name, tensor in getattr(training, part).items():
                tensor.copy_(tensors[f"{part}.{name}"])
        training.step, training.least = progress["step"], progress["least"]

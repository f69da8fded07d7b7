"""AutogradTower, the verbs of the other engines by autograd over the whole context; EagerTower in PyTorch."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from semobridge_ext._engines.tower_descent.engine import TowerEngine
from semobridge_ext._engines.tower_descent.forward import run_tower
from semobridge_ext._engines.tower_descent.spec import LearnedRows, Tower
from semobridge_ext.runtime import adamw


@contextmanager
def _recorded() -> Iterator[None]:
    """Gradients are asked for here, whatever the caller has switched off for work of its own."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


class AutogradTower(TowerEngine):
    """The verbs by one differentiable pass."""

    @abstractmethod
    def _pass(self, tokens: Tensor) -> Tensor:  # [S, R, T] -> [S, D], not normalised
        """The features of learned vectors, differentiable in them."""

    def features(
        self,
        tokens: Tensor,  # [S, R, T]
        *,
        unit: bool = False,
    ) -> Tensor:  # [S, D]
        with torch.no_grad():
            out = self._pass(tokens)
        return torch.nn.functional.normalize(out, dim=-1) if unit else out

    def gradient(
        self,
        tokens: Tensor,  # [S, R, T]
        grad_features: Tensor,  # [S, D] with respect to features(unit=False)
    ) -> Tensor:  # [S, R, T]
        with _recorded():
            v = tokens.clone().detach().requires_grad_()
            return torch.autograd.grad(self._pass(v), v, grad_features)[0]

    def descend(
        self,
        tokens: Tensor,  # [S, R, T], updated
        exp_avg: Tensor,  # [S, R, T], updated
        exp_avg_sq: Tensor,  # [S, R, T], updated
        targets: Tensor,  # [S, D] unit rows
        step_begin: int,
        step_end: int,
        *,
        grad_scale: float,
        lr: float,
        weight_decay: float,
        record_steps: tuple[int, ...] = (),
        recorded: Tensor | None = None,  # [len(record_steps), S, D], written
    ) -> Tensor:  # [steps, S]
        losses = tokens.new_empty(max(step_end - step_begin, 0), len(tokens))
        with _recorded():
            targets = targets.clone()
        for step in range(step_begin, step_end):
            with _recorded():
                v = tokens.clone().detach().requires_grad_()
                features = self._pass(v)
                loss = 1 - torch.nn.functional.cosine_similarity(features, targets, dim=-1)
                (g,) = torch.autograd.grad(loss.sum() * grad_scale, v)
            losses[step - step_begin] = loss.detach()
            if step in record_steps and recorded is not None:
                unit = torch.nn.functional.normalize(features.detach(), dim=-1)
                recorded[record_steps.index(step)] = unit
            rate, root = adamw.corrections(lr, step + 1)
            adamw.update(tokens, g, exp_avg, exp_avg_sq, keep=1 - lr * weight_decay, rate=rate, root=root)
        return losses


class EagerTower(AutogradTower):
    """Learned rows in a frozen tower, on any device that PyTorch knows.

    Args:
        tower: with weights of ``tower.compute``.
        rows: what is learned and what stands around it.

    Memory: autograd's activations of all L positions, for every sample of a call.
    """

    kind = "eager"

    def __init__(self, tower: Tower, rows: LearnedRows) -> None:
        self.tower, self.rows, self.compute = tower, rows, tower.compute
        self.vectors, self.width, self.dim = rows.vectors, tower.width, tower.features

    def _pass(self, tokens: Tensor) -> Tensor:  # [S, R, T] -> [S, D]
        return run_tower(self.tower, self.rows, tokens)

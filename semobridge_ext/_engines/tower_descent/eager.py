"""EagerTower: the verbs of the other engines in plain PyTorch, with autograd over the whole context."""

from __future__ import annotations

import torch
from torch import Tensor

from semobridge_ext._engines.tower_descent.engine import TowerEngine
from semobridge_ext._engines.tower_descent.forward import run_tower
from semobridge_ext._engines.tower_descent.spec import LearnedRows, Tower
from semobridge_ext.runtime import adamw


class EagerTower(TowerEngine):
    """Learned rows in a frozen tower, on any device that PyTorch knows.

    Args:
        tower: with weights of ``tower.compute``.
        rows: what is learned and what stands around it.

    Memory: autograd's activations of all L positions, for every sample of a call.
    """

    def __init__(self, tower: Tower, rows: LearnedRows) -> None:
        self.tower, self.rows, self.compute = tower, rows, tower.compute
        self.vectors, self.width, self.dim = rows.vectors, tower.width, tower.features

    def features(
        self,
        tokens: Tensor,  # [S, R, T]
        *,
        unit: bool = False,
    ) -> Tensor:  # [S, D]
        with torch.no_grad():
            out = run_tower(self.tower, self.rows, tokens)
        return torch.nn.functional.normalize(out, dim=-1) if unit else out

    def gradient(
        self,
        tokens: Tensor,  # [S, R, T]
        grad_features: Tensor,  # [S, D] with respect to features(unit=False)
    ) -> Tensor:  # [S, R, T]
        v = tokens.detach().requires_grad_()
        with torch.enable_grad():
            out = run_tower(self.tower, self.rows, v)
        return torch.autograd.grad(out, v, grad_features)[0]

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
        for step in range(step_begin, step_end):
            v = tokens.detach().requires_grad_()
            with torch.enable_grad():
                features = run_tower(self.tower, self.rows, v)
                loss = 1 - torch.nn.functional.cosine_similarity(features, targets, dim=-1)
                (g,) = torch.autograd.grad(loss.sum() * grad_scale, v)
            losses[step - step_begin] = loss.detach()
            if step in record_steps and recorded is not None:
                unit = torch.nn.functional.normalize(features.detach(), dim=-1)
                recorded[record_steps.index(step)] = unit
            rate, root = adamw.corrections(lr, step + 1)
            adamw.update(tokens, g, exp_avg, exp_avg_sq, keep=1 - lr * weight_decay, rate=rate, root=root)
        return losses

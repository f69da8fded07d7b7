"""The verbs that every engine of a tower descent has."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class TowerEngine(Protocol):
    """Learned vectors in a frozen tower: FrozenTower (core), LaunchedTower (a device) and EagerTower.

    Letters: S samples · R learned vectors · T tower width · D feature width.
    """

    compute: torch.dtype  # of all tensors below
    vectors: int  # R
    width: int  # T
    dim: int  # D

    def features(
        self,
        tokens: Tensor,  # [S, R, T]
        *,
        unit: bool = False,
    ) -> Tensor:  # [S, D]
        """Features of the vectors, as rows of length one with ``unit``."""

    def gradient(
        self,
        tokens: Tensor,  # [S, R, T]
        grad_features: Tensor,  # [S, D] with respect to features(unit=False)
    ) -> Tensor:  # [S, R, T]
        """What flows back to the vectors. A context shared by all samples sums it over S."""

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
        """AdamW steps [step_begin, step_end) on 1 − cos; returns each sample's loss before each step.

        All tensors contiguous. ``grad_scale`` is the 1/B of a mean over the batch.
        """

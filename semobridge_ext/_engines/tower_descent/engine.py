"""The verbs that every engine of a tower descent has."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class TowerEngine(Protocol):
    """Learned vectors in a frozen tower: FrozenTower (core), LaunchedTower (a device), and by autograd
    EagerTower and ModelTower.

    Letters: S samples · R learned vectors · T tower width · D feature width.

    Attributes:
        kind: which engine it is, as an Inversion tells it.
        compute: dtype of all tensors: float32, float64 in a float64 tower.
        vectors, width, dim: R, T, D.
    """

    kind: str
    compute: torch.dtype
    vectors: int
    width: int
    dim: int

    def chunk(self) -> int | None:
        """Samples that a descent best takes at once, by the device's memory; None: no matter."""
        return None

    def features(
        self,
        tokens: Tensor,  # [S, R, T]
        *,
        unit: bool = False,
    ) -> Tensor:  # [S, D]
        """The tower's features with the vectors in their positions.

        Args:
            tokens: [S, R, T] of dtype ``compute``.
            unit: return rows of length one.

        Returns:
            [S, D] in ``compute``, without a gradient.
        """

    def gradient(
        self,
        tokens: Tensor,  # [S, R, T]
        grad_features: Tensor,  # [S, D]
    ) -> Tensor:  # [S, R, T]
        """``gᵀ·∂feature/∂v``: the gradient of the vectors from that of their features.

        A context shared by all samples gets the sum over S.

        Args:
            tokens: [S, R, T] of dtype ``compute``.
            grad_features: [S, D] in ``compute``, with respect to ``features(unit=False)``.

        Returns:
            [S, R, T] in ``compute``.
        """

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
        """AdamW steps ``step_begin`` to ``step_end`` − 1 on ``1 − cos(feature(v), target)``.

        Args:
            tokens: [S, R, T] of dtype ``compute``, contiguous like all tensors here; updated.
            exp_avg, exp_avg_sq: [S, R, T] AdamW's moments, zero before step 0; updated.
            targets: [S, D] unit rows; a zero row has no gradient.
            grad_scale: factor of every sample's loss: 1/B for the mean over a batch of B.
            lr, weight_decay: AdamW's; betas 0.9 and 0.999, eps 1e-8.
            record_steps: before which of these steps the features are kept.
            recorded: [len(record_steps), S, D] unit features; written where a step is one of them.

        Returns:
            [steps, S] in ``compute``: each sample's loss before each step.
        """

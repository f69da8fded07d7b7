"""IsoCLIP by the paper's formula in float64, and a problem that its cuts solve."""

from __future__ import annotations

import torch
from torch import Tensor

F64 = torch.float64
V, T, WIDTH = 20, 14, 12


def unit(x: Tensor) -> Tensor:
    return x / x.square().sum(-1, keepdim=True).sqrt()


def paper(x: Tensor, a: Tensor, w: Tensor, top: int, bottom: int, side: str) -> Tensor:
    """norm(x P A) with the projector from the full SVD of A Wᵀ, in float64."""
    a, w = a.double(), w.double()
    u, _, ht = torch.linalg.svd(a @ w.T)
    rank = min(*a.shape, *w.shape)
    basis, matrix = (u, a) if side == "image" else (ht.T, w)
    kept = basis[:, top : rank - bottom]
    return unit(x.double() @ kept @ kept.T @ matrix)


def problem(a: Tensor, w: Tensor, noisy: int) -> tuple[Tensor, Tensor]:
    """Classes that the `noisy` top directions of A Wᵀ hide under noise."""
    u = torch.linalg.svd(a.double() @ w.double().T)[0][:, :WIDTH]
    labels = torch.arange(60) % 6
    centres = torch.randn(6, WIDTH, dtype=F64)
    coordinates = centres[labels] + 0.3 * torch.randn(60, WIDTH, dtype=F64)
    coordinates[:, :noisy] = 30 * torch.randn(60, noisy, dtype=F64)
    return (coordinates @ u.T).float(), labels

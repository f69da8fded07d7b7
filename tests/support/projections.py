"""Text projections with a chosen spectrum, and the bridge's definition in float64."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

ATOL = 0.3  # the paper's cut-off


def spectrum(rows: int, cols: int, singular: Tensor) -> Tensor:
    """A random [rows, cols] float32 matrix with the given singular values (zeros after them)."""
    left, _ = torch.linalg.qr(torch.randn(rows, len(singular), dtype=torch.float64))
    right, _ = torch.linalg.qr(torch.randn(cols, len(singular), dtype=torch.float64))
    return ((left * singular) @ right.T).float()


def with_rank(rows: int, cols: int, rank: int, condition: float = 10.0) -> Tensor:
    """`rank` singular values from 0.6 to 0.6·condition, the others at most 0.1: below the cut."""
    kept = 0.6 * torch.logspace(0, 1, rank, base=condition, dtype=torch.float64)
    dropped = 0.1 * torch.rand(min(rows, cols) - rank, dtype=torch.float64)
    return spectrum(rows, cols, torch.cat([kept.flip(0), dropped]))


def gaussian(rows: int, cols: int) -> Tensor:
    """What CLIP initialises its projection with, scaled to a trained one's size."""
    return torch.randn(rows, cols) * rows**-0.5


def chain(
    f: Tensor,  # [.., D]
    w: Tensor,  # [T, D]
    *,
    inverse: Tensor | None = None,  # [D, T]
    class_bias: Tensor | None = None,  # broadcastable to [.., T]
    text_length: float = 1.0,
    project: bool = True,
    normalize: bool = True,
) -> Tensor:
    """``norm(ℓ·norm(f W⁺ + τ)·W)`` as the paper writes it, in float64; no code of the package."""
    f, w = f.double(), w.double()
    inverse = torch.linalg.pinv(w, atol=ATOL, rtol=0.0) if inverse is None else inverse.double()
    e = f @ inverse
    if class_bias is not None:
        e = e + class_bias.double()
    e = text_length * e / e.square().sum(-1, keepdim=True).sqrt()
    if project:
        e = e @ w
    return e / e.square().sum(-1, keepdim=True).sqrt() if normalize else e


# What Bridge's call takes.
OPTIONS = [dict(project=p, normalize=n) for p, n in itertools.product((True, False), repeat=2)]

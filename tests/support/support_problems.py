"""Queries, keys and labels of support_logits, and its float64 oracle."""

from __future__ import annotations

import torch
from torch import Tensor


def unit(n: int, d: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(n, d, dtype=torch.float64), dim=1).to(dtype)


def oracle(q: Tensor, k: Tensor, labels: Tensor, c: int, beta: float, w: Tensor | None = None) -> Tensor:
    """float64, class by class: independent of reference/, which multiplies by a one-hot matrix."""
    terms = torch.exp(-beta * (1 - torch.einsum("nd,sd->ns", q.double(), k.double())))
    if w is not None:
        terms = terms * w.double()
    return torch.stack([terms[:, labels == i].sum(1) for i in range(c)], dim=1)


def problem(n: int, s: int, c: int, d: int, dtype=torch.float32, key_dtype=None):
    labels = torch.randint(0, c, (s,))
    return unit(n, d, dtype), unit(s, d, key_dtype or dtype), labels, torch.rand(s) + 0.1

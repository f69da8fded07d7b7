"""The oracle of symmetric_kl: both divergences by their definition, from softmax arrays."""

from __future__ import annotations

import torch
from torch import Tensor


def symmetric_kl(logits_a: Tensor, logits_b: Tensor, *, temperature: float = 1.0) -> Tensor:
    """``mean_n ½·Σ_k p·log(p/q) + ½·Σ_k q·log(q/p)`` with ``p = softmax(a/t)``, ``q = softmax(b/t)``.

    Args:
        logits_a: [N, K] logits of one side, any float dtype; float64 for an oracle.
        logits_b: [N, K] of the other.
        temperature: t > 0.

    Returns:
        The mean over rows, a scalar in the dtype of the logits.

    Raises:
        RuntimeError: shapes that do not fit each other (PyTorch's own message).

    Numerics: every step rounds to the dtype of the input. A probability that underflows to 0 makes the other
        side's divergence infinite. Differentiable in both.

    Memory: O(N·K), several arrays.

    Example:
        >>> import torch, semobridge_ext as sb
        >>> sb.reference.symmetric_kl(torch.zeros(1, 2), torch.zeros(1, 2))
        tensor(0.)
    """
    p = torch.softmax(logits_a / temperature, dim=-1)
    q = torch.softmax(logits_b / temperature, dim=-1)
    forward = (torch.xlogy(p, p) - torch.xlogy(p, q)).sum(dim=-1)
    backward = (torch.xlogy(q, q) - torch.xlogy(q, p)).sum(dim=-1)
    return (forward / 2 + backward / 2).mean()

"""AdamW in PyTorch, with every tensor in place and no number read back (Loshchilov and Hutter, ICLR 2019).

    p ← p·(1 − lr·decay)      m ← β1·m + (1 − β1)·g      v ← β2·v + (1 − β2)·g²
    p ← p − lr/(1 − β1ⁿ) · m / (sqrt(v)/sqrt(1 − β2ⁿ) + ε)

The order of operations is that of ``torch.optim.AdamW``, which the oracles use.
"""

from __future__ import annotations

import torch
from torch import Tensor

BETAS, EPS = (0.9, 0.999), 1e-8


def corrections(
    lr: float,
    n: int,  # 1, 2, …
) -> tuple[float, float]:
    """Rate ``lr/(1 − β1ⁿ)`` and root ``sqrt(1 − β2ⁿ)`` of step n."""
    return lr / (1 - BETAS[0] ** n), (1 - BETAS[1] ** n) ** 0.5


def update(
    parameter: Tensor,  # updated
    gradient: Tensor,
    first: Tensor,  # m, updated
    second: Tensor,  # v, updated
    *,
    keep: float | Tensor,  # 1 − lr·decay
    rate: float | Tensor,  # lr/(1 − β1ⁿ)
    root: float | Tensor,  # sqrt(1 − β2ⁿ)
    work: Tensor | None = None,  # like parameter
    one_launch: bool = False,
    eps: float = EPS,
) -> None:
    """One step.

    ``keep``, ``rate`` and ``root`` are numbers, or tensors of one value on the device for a step that a
    CUDA graph repeats. The forms of the last line round differently, by one unit in the last place:
    ``addcdiv`` is that of ``torch.optim.AdamW``, but takes its factor from the host; of the two that read
    the factor from the device, ``one_launch`` multiplies and subtracts at once. Every caller keeps its own,
    because another form would change its results.
    """
    parameter.mul_(keep)
    first.lerp_(gradient, 1 - BETAS[0])
    second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
    below = torch.sqrt(second, out=work)
    below.div_(root).add_(eps)
    if not isinstance(rate, Tensor):
        parameter.addcdiv_(first, below, value=-rate)
        return
    move = torch.div(first, below, out=below)
    if one_launch:
        parameter.addcmul_(move, rate, value=-1)
    else:
        parameter.sub_(move.mul_(rate))

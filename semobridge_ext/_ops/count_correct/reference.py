"""The oracle of count_correct: the blend as the paper writes it, dense diagonal of weights and all."""

from __future__ import annotations

import torch
from torch import Tensor

from semobridge_ext._ops.blend_logits.spec import BlendParams, Similarities


def count_correct(
    z: Similarities,  # three blocks of cosines, each [N, C]
    labels: Tensor,  # [N] int64
    exponents: Tensor,  # [C] float64 D_c
    params: BlendParams,
) -> int:
    """Rows whose largest logit, in float64, is their label's; the lower class wins a tie."""
    z1, z2, z3 = (block.double() for block in z)
    few = params.lambda2 * torch.exp(-params.beta * (1 - z2))
    few = few + params.lambda3 * torch.exp(-params.gamma * (1 - z3))
    weights = torch.diag(torch.exp(params.s * exponents))
    logits = params.lambda1 * torch.exp(-params.alpha * (1 - z1)) + few @ weights
    return int((logits.argmax(dim=1) == labels).sum())

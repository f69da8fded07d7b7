"""count_correct by the formula itself, in float64: for parameters under which nothing can be pruned."""

from __future__ import annotations

import torch
from torch import Tensor

from semobridge_ext._ops.blend_logits.eager import blend_logits
from semobridge_ext._ops.blend_logits.spec import BlendParams, Similarities


def count_correct(z: Similarities, labels: Tensor, params: BlendParams, exponents: Tensor) -> int:
    """Rows whose largest logit is their label's; the lower class wins a tie."""
    wide = Similarities(*(block.to(torch.float64) for block in z))
    best = blend_logits(wide, params, exponents).argmax(dim=1).cpu()
    return int((best == labels).sum())

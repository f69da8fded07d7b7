"""How good the parameters of a training are on the validation part."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from semobridge_ext._engines.bridge_training.step import BridgeTrainer
from semobridge_ext._ops.blend_logits.eager import class_exponents
from semobridge_ext._ops.blend_logits.op import BlendOperand
from semobridge_ext._ops.blend_logits.spec import BlendParams


def accuracy(
    trainer: BridgeTrainer,
    held_out: tuple[Tensor, Tensor],  # [N, D] queries and [N] classes
    text: Tensor,  # [C, D] unit rows in float64, zeros where there is none
    has_text: bool,
    params: BlendParams,
) -> float:
    """Of the trainer's present parameters, with the blend that is given."""
    p = {name: value.to("cpu", torch.float64) for name, value in trainer.parameters.items()}
    w = trainer.w.to("cpu", torch.float64)
    f, y = trainer.shots.to("cpu", torch.float64), trainer.labels.cpu()
    mean = trainer.class_means().to("cpu", torch.float64)
    raw = normalize(torch.zeros(len(mean), f.shape[1], dtype=torch.float64).index_add_(0, y, f), dim=1)
    exponents = class_exponents(raw, text) if has_text else torch.zeros(len(raw))
    operand = BlendOperand(text, normalize(mean @ w, dim=1), raw, exponents.double(), p["inverse"] @ w)
    queries, targets = held_out
    return float((operand.labels(queries, params).cpu() == targets).double().mean())

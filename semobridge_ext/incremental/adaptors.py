"""The adaptors of RETune and what stands on them.

f′ = norm(f̂ + r·g(f̂))        t′ = norm(t̂ + r·h(t̂))        unit rows in, unit rows out
linear:      g(x) = x M                          M [D, D], at first 0
bottleneck:  g(x) = max(x A, 0) B                A [D, H], B [H, D]; B at first 0
z_d = s·(f′·t′_d⁺ − f′·t′_d⁻)                     p_d = σ(z_d), the softmax over the two prompts
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from semobridge_ext import _numbers

Parameters = dict[str, Tensor]
TOWERS = ("image", "text")
KINDS = ("linear", "bottleneck")


class Form(NamedTuple):
    """What stays from the first task to the last."""

    adaptor: str
    width: int  # H of the bottleneck
    residual: float  # r
    logit_scale: float  # s


def names(adaptor: str) -> list[str]:
    parts = ("linear",) if adaptor == "linear" else ("down", "up")
    return [f"{tower}_{part}" for tower in TOWERS for part in parts]


def initial(form: Form, features: int, seed: int) -> Parameters:
    """Float32, so that both towers begin as the frozen model's; A is uniform ±1/√D, from one generator."""
    generator = torch.Generator().manual_seed(_numbers.seed_of(seed))
    made: Parameters = {}
    for tower in TOWERS:
        if form.adaptor == "linear":
            made[f"{tower}_linear"] = torch.zeros(features, features)
            continue
        drawn = torch.rand(features, form.width, generator=generator, dtype=torch.float64)
        made[f"{tower}_down"] = ((drawn * 2 - 1) * features**-0.5).float()
        made[f"{tower}_up"] = torch.zeros(form.width, features)
    return made


def adapted(p: Parameters, form: Form, tower: str, rows: Tensor) -> Tensor:  # [.., D] unit rows, in and out
    if form.adaptor == "linear":
        moved = rows @ p[f"{tower}_linear"]
    else:
        moved = torch.relu(rows @ p[f"{tower}_down"]) @ p[f"{tower}_up"]
    return normalize(rows + form.residual * moved, dim=-1)


def logits(
    p: Parameters,
    form: Form,
    features: Tensor,  # [N, D] unit rows
    prompts: Tensor,  # [L, 2, D] unit rows: positive, negative
) -> Tensor:  # [N, L]
    text = adapted(p, form, "text", prompts)
    return form.logit_scale * adapted(p, form, "image", features) @ (text[:, 0] - text[:, 1]).T

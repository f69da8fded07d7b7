"""SpectralGCD's parameters on features, its forward pass, and the few matrices that prediction needs.

f′ = norm(f̂ + f̂ M)          the adapter M [D, D], at first 0
z  = f′ T̂ᵀ/t                 [K]: cosines with the concepts over the temperature
u  = z·A + b                 [H]; without concepts u = f′
logits = norm(u)·norm(P)ᵀ     [C]: cosines with the prototypes
projection of u for the contrast: two GELU layers and a linear one
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import gelu, linear, normalize

from semobridge_ext import _numbers

Parameters = dict[str, Tensor]


class Sizes(NamedTuple):
    features: int  # D
    concepts: int  # K; 0: none
    width: int  # H; D without concepts
    hidden: int
    projection: int
    classes: int  # C


class Rows(NamedTuple):
    logits: Tensor  # [n, C]
    projections: Tensor  # [n, P]
    concepts: Tensor | None  # [n, K]


def initial(sizes: Sizes, adapter: bool, seed: int, dtype: torch.dtype) -> Parameters:
    """From one generator: normal 0.02 in the projector, elsewhere uniform ±1/√inputs; biases are 0."""
    generator = torch.Generator().manual_seed(_numbers.seed_of(seed))

    def uniform(*shape: int) -> Tensor:
        bound = shape[-1] ** -0.5
        return (torch.rand(*shape, generator=generator, dtype=torch.float64) * 2 - 1) * bound

    def cut_normal(*shape: int) -> Tensor:
        drawn = torch.empty(*shape, dtype=torch.float64)
        return torch.nn.init.trunc_normal_(drawn, std=0.02, generator=generator)

    d, k, h, hidden, p, c = sizes
    made: Parameters = {}
    if adapter:
        made["adapter"] = torch.zeros(d, d, dtype=torch.float64)
    if k:
        made["concept_weight"] = uniform(h, k)
        made["concept_bias"] = torch.zeros(h, dtype=torch.float64)
    for name, rows, columns in (("first", hidden, h), ("second", hidden, hidden), ("last", p, hidden)):
        made[f"{name}_weight"] = cut_normal(rows, columns)
        made[f"{name}_bias"] = torch.zeros(rows, dtype=torch.float64)
    made["prototypes"] = uniform(c, h)
    return {name: value.to(dtype).contiguous() for name, value in made.items()}


def is_of_block(name: str) -> bool:
    """Whether a parameter is one of the last vision block, which takes the adapter's place."""
    return name.startswith("block_")


def adapted(p: Parameters, features: Tensor) -> Tensor:  # [n, D] -> [n, D] unit rows
    unit = normalize(features, dim=1)
    if "adapter" in p:
        unit = normalize(unit + unit @ p["adapter"], dim=1)
    return unit


def classify(p: Parameters, u: Tensor) -> Tensor:  # [n, H] -> [n, C]
    return normalize(u, dim=1) @ normalize(p["prototypes"], dim=1).T


def project(p: Parameters, u: Tensor) -> Tensor:  # [n, H] -> [n, P]
    u = gelu(linear(u, p["first_weight"], p["first_bias"]))
    u = gelu(linear(u, p["second_weight"], p["second_bias"]))
    return linear(u, p["last_weight"], p["last_bias"])


def forward(
    p: Parameters,
    features: Tensor,  # [n, D]
    concepts: Tensor | None,  # [K, D] unit rows
    temperature: float,
) -> Rows:
    f = adapted(p, features)
    z = None if concepts is None else f @ concepts.T / temperature
    u = f if z is None else linear(z, p["concept_weight"], p["concept_bias"])
    return Rows(classify(p, u), project(p, u), z)


def folded(p: Parameters, concepts: Tensor | None, temperature: float) -> Parameters:
    """What prediction needs. ``u = f′·(T̂ᵀAᵀ/t) + b`` is one D×H matrix: no row as wide as the dictionary."""
    kept: Parameters = {
        name: value for name, value in p.items() if name in ("adapter", "prototypes") or is_of_block(name)
    }
    if concepts is not None:
        wide = concepts.double().T @ p["concept_weight"].double().T / temperature
        kept["fold"], kept["bias"] = wide.to(concepts.dtype), p["concept_bias"]
    return {name: value.detach().clone() for name, value in kept.items()}


def predict_logits(p: Parameters, features: Tensor) -> Tensor:  # folded parameters, [n, D] -> [n, C]
    f = adapted(p, features)
    return classify(p, f @ p["fold"] + p["bias"] if "fold" in p else f)

"""What a map is fitted to: pilots, checked and drawn."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from semobridge_ext import _errors
from semobridge_ext._engines.tower_descent.engine import TowerEngine

_NEAR = 0.98  # mean cosine between an inversion's features and those of its tokens: bfloat16 gives more


def checked_ridge(function: str, ridge: Any) -> float | None:
    """The number; None for "auto"."""
    if isinstance(ridge, str) and ridge == "auto":
        return None
    number = isinstance(ridge, (int, float)) and not isinstance(ridge, bool)
    if not number or not 0 < ridge < float("inf"):
        kind = ValueError if number or isinstance(ridge, str) else TypeError
        contract = 'be "auto" or a finite number > 0'
        raise kind(_errors.message(function, "ridge", contract, ridge, "leave it out"))
    return float(ridge)


def too_few(function: str, count: int) -> ValueError:
    contract, got = "have two rows at least that are not zero", f"{count} of them"
    return ValueError(_errors.message(function, "features", contract, got, "pass more rows"))


def drawn(
    function: str, targets: Tensor, pilots: int, engine: TowerEngine, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:  # [n, D], [R, T]
    """The pilots in their order, and the start of all of them."""
    usable = (targets != 0).any(1).nonzero().flatten()
    if len(usable) < 2:
        raise too_few(function, len(usable))
    device = torch.device("cpu") if generator is None else generator.device
    picked = torch.randperm(len(usable), generator=generator, device=device)[:pilots].sort().values
    shape = (engine.vectors, engine.width)
    first = torch.randn(shape, generator=generator, device=device) * 0.02
    return targets[usable[picked.to(usable.device)]], first.to("cpu", engine.compute)


def check_template(function: str, engine: TowerEngine, tokens: Tensor, features: Tensor) -> None:
    """An inversion does not say what it was made with, but its features do."""
    found = engine.features(tokens.contiguous(), unit=True)
    near = float(torch.cosine_similarity(found, features, dim=1).mean())
    if not near >= _NEAR:
        raise ValueError(
            f"{function}: inversion must be of this model and template, got tokens that lead to other "
            f"features than its own (mean cosine {near:.3f}); pass what it was made with"
        )

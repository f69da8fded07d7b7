"""What a map is fitted to: pilots, checked and drawn."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from semobridge_ext import _errors, _numbers
from semobridge_ext._engines.tower_descent.engine import TowerEngine
from semobridge_ext.inversion.map_training import drawn_batches, drawn_inner, held_rows

_NEAR = 0.98  # mean cosine between an inversion's features and those of its tokens: bfloat16 gives more


def checked_ridge(function: str, ridge: Any) -> float | None:
    """The number; None for "auto"."""
    if isinstance(ridge, str) and ridge == "auto":
        return None
    number = _numbers.is_real(ridge)
    if not number or not 0 < ridge < float("inf"):
        kind = ValueError if number or isinstance(ridge, str) else TypeError
        contract = 'be "auto" or a finite number > 0'
        raise kind(_errors.message(function, "ridge", contract, ridge, "leave it out"))
    return float(ridge)


def too_few(function: str, count: int) -> ValueError:
    contract, got = "have two rows at least that are not zero", f"{count} of them"
    return ValueError(_errors.message(function, "features", contract, got, "pass more rows"))


class Drawn(NamedTuple):
    """What one generator gives a fit, in this order."""

    pilots: Tensor  # [n, D], in their order
    first: Tensor  # [R, T] start of all of them
    rows: Tensor  # [N, D] to train on, the pilots among them
    held: Tensor  # [n, D] to judge a training on; empty: it is left out
    batches: Tensor  # [steps, BATCH] of the rows
    inner: Tensor  # [D, H] start of the hidden layer


def drawn(
    function: str,
    targets: Tensor,  # [B, D] unit rows
    pilots: int,
    engine: TowerEngine,
    generator: torch.Generator | None,
    hidden: int,
    train_steps: int,
) -> Drawn:
    """Rows that are zero take no part, and those held out from a training are no pilots."""
    usable = targets[(targets != 0).any(1)]
    if len(usable) < 2:
        raise too_few(function, len(usable))
    held = held_rows(len(usable)) if train_steps else torch.zeros(len(usable), dtype=torch.bool)
    held = held.to(usable.device)
    rows = usable[~held]
    device = torch.device("cpu") if generator is None else generator.device
    picked = torch.randperm(len(rows), generator=generator, device=device)[:pilots].sort().values
    shape = (engine.vectors, engine.width)
    first = torch.randn(shape, generator=generator, device=device, dtype=torch.float32) * 0.02
    steps, width = (train_steps, hidden) if bool(held.any()) else (0, 0)
    batches = drawn_batches(len(rows), steps, generator)
    inner = drawn_inner(rows.shape[1], width, engine, generator)
    return Drawn(
        rows[picked.to(rows.device)], first.to("cpu", engine.compute), rows, usable[held], batches, inner
    )


def check_template(function: str, engine: TowerEngine, tokens: Tensor, features: Tensor) -> None:
    """An inversion does not say what it was made with, but its features do."""
    found = engine.features(tokens.contiguous(), unit=True)
    near = float(torch.cosine_similarity(found, features, dim=1).mean())
    if not near >= _NEAR:
        raise ValueError(
            f"{function}: inversion must be of this model and template, got tokens that lead to other "
            f"features than its own (mean cosine {near:.3f}); pass what it was made with"
        )

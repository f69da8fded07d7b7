"""A tower made ready for an inversion, and what a file says of it."""

from __future__ import annotations

from typing import Any

import torch

from semobridge_ext._engines.tower_descent.choice import make_engine
from semobridge_ext._engines.tower_descent.engine import TowerEngine
from semobridge_ext.clip.towers import text_entry, vision_entry


def _numerics(weights: torch.dtype | None, compute: torch.dtype | None) -> dict[str, str]:
    """What a file says of them; nothing of what is not asked for, as before."""
    return {"weights": str(weights)} | ({} if compute is None else {"compute": str(compute)})


def prepared(
    function: str,  # oti or ovi
    model: Any,
    vectors: int,
    weights: torch.dtype | None,
    compute: torch.dtype | None,
    template: str = "",
    tokenizer: Any = None,
) -> tuple[TowerEngine, dict[str, Any]]:
    """The engine that descends, and what a stamp is made of; template and tokenizer are of oti."""
    if function == "ovi":
        description: dict[str, Any] = {}
        tower, rows, run = vision_entry(function, model, num_patches=vectors)
    else:
        description = {"template": template}
        tower, rows, run = text_entry(function, model, template, num_tokens=vectors, tokenizer=tokenizer)
    engine = make_engine(function, model, tower, rows, weights, compute, run)
    description |= {"vectors": vectors, **_numerics(weights, compute), "tower": tower, "rows": rows}
    return engine, description

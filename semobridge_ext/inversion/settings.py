"""How an inversion descends, checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from semobridge_ext import _errors

_WEIGHTS = (None, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Settings:
    steps: int
    lr: float
    weight_decay: float
    record_steps: tuple[int, ...]
    patience: int | None
    min_delta: float


def check_count(function: str, name: str, value: Any, least: int) -> int:
    """The value, if it is an int of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        kind = ValueError if isinstance(value, int) and not isinstance(value, bool) else TypeError
        raise kind(
            _errors.message(function, name, f"be an int of at least {least}", value, f"pass {name}={least}")
        )
    return value


def check_settings(
    function: str,
    steps: Any,
    lr: float,
    weight_decay: float,
    record_steps: Sequence[int],
    patience: int | None,
    min_delta: float,
    weights: torch.dtype | None,
) -> Settings:
    check_count(function, "steps", steps, 0)
    for name, number in (("lr", lr), ("weight_decay", weight_decay), ("min_delta", min_delta)):
        if not 0 <= number < float("inf"):
            raise ValueError(
                _errors.message(function, name, "be a finite number ≥ 0", number, "leave it out")
            )
    wanted = tuple(sorted({check_count(function, "record_steps", s, 0) for s in record_steps}))
    if wanted and wanted[-1] > steps:
        remedy = "ask for steps that are taken"
        raise ValueError(_errors.message(function, "record_steps", f"be ≤ steps={steps}", wanted, remedy))
    if patience is not None:
        check_count(function, "patience", patience, 1)
    if weights not in _WEIGHTS:
        remedy = "leave it None for the exact choice"
        contract = "be None, torch.float32, torch.float16 or torch.bfloat16"
        raise TypeError(_errors.message(function, "weights", contract, weights, remedy))
    return Settings(steps, lr, weight_decay, wanted, patience, min_delta)

"""How an inversion descends, checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from semobridge_ext import _errors, _numbers

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
    whole = _numbers.is_whole(value)
    if not whole or value < least:
        contract, got = f"be an int of at least {least}", _errors.describe(value)
        raise (ValueError if whole else TypeError)(
            _errors.message(function, name, contract, got, f"pass {name}={least}")
        )
    return int(value)


def check_generator(function: str, generator: Any) -> None:
    if generator is not None and not isinstance(generator, torch.Generator):
        remedy = "pass torch.Generator().manual_seed(0)"
        contract, got = "be a torch.Generator or None", _errors.describe(generator)
        raise TypeError(_errors.message(function, "generator", contract, got, remedy))


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
    steps = check_count(function, "steps", steps, 0)
    for name, number in (("lr", lr), ("weight_decay", weight_decay), ("min_delta", min_delta)):
        if not _numbers.is_real(number):
            got = _errors.describe(number)
            raise TypeError(_errors.message(function, name, "be a number", got, "leave it out"))
        if not 0 <= number < float("inf"):
            raise ValueError(
                _errors.message(function, name, "be a finite number ≥ 0", number, "leave it out")
            )
    asked = _numbers.whole_numbers(function, "record_steps", record_steps, "(10, 150)")
    wanted = tuple(sorted({check_count(function, "record_steps", s, 0) for s in asked}))
    if wanted and wanted[-1] > steps:
        remedy = "ask for steps that are taken"
        raise ValueError(_errors.message(function, "record_steps", f"be ≤ steps={steps}", wanted, remedy))
    if patience is not None:
        patience = check_count(function, "patience", patience, 1)
    if weights not in _WEIGHTS:
        remedy = "leave it None for the exact choice"
        contract = "be None, torch.float32, torch.float16 or torch.bfloat16"
        raise TypeError(_errors.message(function, "weights", contract, weights, remedy))
    return Settings(steps, float(lr), float(weight_decay), wanted, patience, float(min_delta))

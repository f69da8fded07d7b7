"""Numbers as users pass them: Python's own and NumPy's; True and False are none."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from semobridge_ext import _errors

_WHOLE = (int, np.integer)
_REAL = (int, float, np.integer, np.floating)


def is_whole(value: Any) -> bool:
    """Whether it is a whole number by its type: ``5.0`` is none."""
    return isinstance(value, _WHOLE) and not isinstance(value, bool)


def is_whole_valued(value: Any) -> bool:
    """Whether it is a whole number by its value: the float that an array of floats holds is one."""
    return float(value).is_integer() if isinstance(value, (float, np.floating)) else is_whole(value)


def is_real(value: Any) -> bool:
    """Whether it is a number by its type; it may be NaN."""
    return isinstance(value, _REAL) and not isinstance(value, bool)


def check_number(
    where: str,
    name: str,
    value: Any,
    *,
    remedy: str,
    least: float = -math.inf,
    above: float = -math.inf,
    most: float = math.inf,
    whole: bool = False,
) -> None:
    """Raises a TypeError for what is no number, a ValueError for one outside least..most or not above."""
    if not (is_whole if whole else is_real)(value):
        contract = "be a whole number" if whole else "be a number"
        raise TypeError(_errors.message(where, name, contract, _errors.describe(value), remedy))
    if not (least <= value <= most and value > above and math.isfinite(value)):
        floor = f"above {above:g}" if above > -math.inf else f"≥ {least:g}"
        ceiling = "" if most == math.inf else f" and at most {most:g}"
        contract = "be finite" if above == least == -most == -math.inf else f"be {floor}{ceiling}"
        raise ValueError(_errors.message(where, name, contract, value, remedy))


def real_numbers(
    function: str, argument: str, value: Any, contract: str, remedy: str,
    *, least: float = -math.inf, above: float = -math.inf,
) -> list[float]:  # fmt: skip
    """A sequence of finite numbers, at least one, as floats; `contract` is what the error says of others."""
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        kind = "be a sequence of numbers"
        raise TypeError(_errors.message(function, argument, kind, _errors.describe(value), remedy))
    found = list(value)
    for number in found:
        if not is_real(number):
            raise TypeError(_errors.message(function, argument, contract, _errors.describe(number), remedy))
    numbers = [float(number) for number in found]
    if not numbers or not all(least <= v < math.inf and v > above for v in numbers):
        got = _errors.describe(numbers)
        raise ValueError(_errors.message(function, argument, contract, got, remedy))
    return numbers


def python(value: Any) -> Any:
    """NumPy's numbers as Python's own, as files keep them; anything else as it is."""
    return value.item() if isinstance(value, np.generic) else value


def for_json(value: Any) -> Any:
    """What ``json.dumps(default=)`` asks for: the same, and a TypeError for anything else."""
    if not isinstance(value, np.generic):
        raise TypeError(
            f"a file keeps numbers, texts and lists of them, got {type(value).__name__}; convert it"
        )
    return value.item()


def seed_of(seed: int, *places: int) -> int:
    """A generator's seed, of a user's and of where a draw stands: ``(seed·1000003 + place)·1000003 + ..``.

    Generators take 64 bits; beyond them it is what is left modulo 2⁶⁴.
    """
    mixed = int(seed)
    for place in places:
        mixed = mixed * 1_000_003 + place
    return mixed if -(1 << 63) <= mixed < 1 << 64 else mixed % (1 << 64)


def whole_numbers(function: str, argument: str, value: Any, usual: str) -> tuple[int, ...]:
    """A sequence of whole numbers as a tuple of ints; `usual` is one that the error shows."""
    remedy = f"pass {usual}"
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        contract = "be a sequence of whole numbers"
        raise TypeError(_errors.message(function, argument, contract, _errors.describe(value), remedy))
    found = tuple(value)
    for number in found:
        if not is_whole(number):
            contract = "hold ints"
            raise TypeError(_errors.message(function, argument, contract, _errors.describe(number), remedy))
    return tuple(int(number) for number in found)

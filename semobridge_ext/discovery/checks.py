"""Numbers among constructor arguments, checked where a user's call enters."""

from __future__ import annotations

import math
from typing import Any

from semobridge_ext import _errors, _numbers


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
    if not (_numbers.is_whole if whole else _numbers.is_real)(value):
        contract = "be a whole number" if whole else "be a number"
        raise TypeError(_errors.message(where, name, contract, _errors.describe(value), remedy))
    if not (least <= value <= most and value > above and math.isfinite(value)):
        floor = f"above {above:g}" if above > -math.inf else f"≥ {least:g}"
        ceiling = "" if most == math.inf else f" and at most {most:g}"
        raise ValueError(_errors.message(where, name, f"be {floor}{ceiling}", value, remedy))

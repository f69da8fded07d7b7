"""The one comparison of a result with its float64 oracle; NumPy alone, so that programs apart share it.

It cannot pass on nothing: it refuses NaN first and requires an oracle with signal.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tests.support.tolerances import tolerance

# (family, dtype) -> worst error within the bound in this run, in the table's unit; conftest prints it at
# the end. What is beyond fails its test, or is a kernel that a test has broken.
WORST: dict[tuple[str, str], float] = {}

_SIGNAL = 0.25  # at least this share of the oracle's values must differ from zero
_BIAS_SAMPLES = 256  # fewer values say nothing about a systematic lean
_BIAS_LIMIT = 0.1  # truncation instead of rounding leans by half a unit in the last place
_BIAS_NOISE = 2.6  # over sqrt(n): 4.5 deviations of the mean of n evenly spread roundings
# Bits of the significand, and the exponent of the least subnormal.
_FORMATS = {"float64": (53, -1074), "float32": (24, -149), "float16": (11, -24), "bfloat16": (8, -133)}


class Found(NamedTuple):
    seen: float  # worst error in the table's unit: ulps for the half types, else of the row's largest value
    beyond: float  # of the row's largest value, what half types may lose in the last place left out


def spacing(values: np.ndarray, dtype: str) -> np.ndarray:
    """One unit in the last place of the dtype at each value, subnormals included."""
    digits, least = _FORMATS[dtype]
    _, exponent = np.frexp(np.abs(values))  # magnitude = m·2^exponent with m in [0.5, 1)
    return np.ldexp(1.0, np.maximum(np.where(values == 0, least, exponent - digits), least))


def note(family: str, dtype: str, worst: float) -> None:
    WORST[family, dtype] = max(WORST.get((family, dtype), 0.0), worst)


def compare(
    got: np.ndarray,  # the result's values, widened
    want: np.ndarray,  # float64 oracle of the same shape
    family: str,
    dtype: str,  # of the computation
    context: str = "",
) -> Found:
    """``got`` is finite and within the table's bound of ``want``, without a systematic lean."""
    where = f"{family}/{dtype} {context}".strip()
    assert want.dtype == np.float64, f"{where}: the oracle must be float64, is {want.dtype}"
    assert got.shape == want.shape, f"{where}: shape {got.shape}, oracle {want.shape}"
    assert want.size > 0, f"{where}: nothing to compare"
    assert np.isfinite(want).all(), f"{where}: the oracle is not finite"
    got = np.asarray(got, np.float64)
    finite = np.isfinite(got)
    assert finite.all(), (
        f"{where}: {int((~finite).sum())} of {got.size} values are NaN or infinite, "
        f"first at {tuple(map(int, np.argwhere(~finite)[0]))}"
    )
    signal = float((want != 0).mean())
    assert signal >= _SIGNAL, f"{where}: the oracle is zero in {1 - signal:.0%} of its values"

    limit = tolerance(family, dtype)
    scale = np.abs(want).max(-1, keepdims=True) if want.ndim else np.abs(want)
    unit = spacing(want, dtype)
    signed = got - want
    error = np.abs(signed)
    bound = limit.ulps * unit + limit.relative * scale

    def shares(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
        """An all-zero row of the oracle allows no error at all."""
        with np.errstate(divide="ignore"):
            return np.divide(part, whole, out=np.zeros_like(part), where=part != 0)

    ratio = shares(error, np.broadcast_to(bound, error.shape))
    at = tuple(map(int, np.unravel_index(int(ratio.argmax()), ratio.shape)))
    # For the half types: what is left for the last place once the accumulated error is granted.
    half = shares(np.maximum(error - limit.relative * scale, 0), unit)
    beyond = shares(np.maximum(error - limit.ulps * unit, 0), np.broadcast_to(scale, error.shape))
    found = Found(float((half if limit.ulps else beyond).max()), float(beyond.max()))
    assert ratio[at] <= 1, (
        f"{where}: worst at {at}: got {float(got[at])!r}, oracle {float(want[at])!r}, "
        f"{float(ratio[at]):.3g} times the bound {float(bound[at]):.3g}; "
        f"{int((ratio > 1).sum())} of {ratio.size} values beyond it"
    )
    if error.size >= _BIAS_SAMPLES:
        lean = float(shares(signed * np.sign(want), np.broadcast_to(bound, error.shape)).mean())
        # Equal values round alike: rows that repeat tell no more than one of them.
        roundings = error.size if abs(lean) <= _BIAS_LIMIT else np.unique(want).size
        assert abs(lean) <= max(_BIAS_LIMIT, _BIAS_NOISE / roundings**0.5), (
            f"{where}: errors lean {'away from' if lean > 0 else 'towards'} zero, "
            f"mean signed error {lean:.3g} of the bound"
        )
    note(family, dtype, found.seen)
    return found

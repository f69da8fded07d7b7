"""Asserters that cannot pass on nothing: they reject NaN first and require an oracle with signal."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.support.tolerances import tolerance

# (family, dtype) -> worst error of this run; conftest prints it at the end.
WORST: dict[tuple[str, torch.dtype], float] = {}

_SIGNAL = 0.25  # at least this share of the oracle's values must differ from zero
_BIAS_SAMPLES = 256  # fewer values say nothing about a systematic lean
_BIAS_LIMIT = 0.1  # truncation instead of rounding leans by half a unit in the last place
_BIAS_NOISE = 2.6  # over sqrt(n): 4.5 deviations of the mean of n evenly spread roundings


def ulp(value: Tensor, dtype: torch.dtype) -> Tensor:
    """One unit in the last place of ``dtype`` at each float64 value, subnormals included."""
    info = torch.finfo(dtype)
    magnitude = value.abs().clamp_min(info.tiny)
    _, exponent = torch.frexp(magnitude)  # magnitude = m·2^exponent with m in [0.5, 1)
    return torch.ldexp(torch.full_like(magnitude, info.eps), exponent - 1)


def _worst_index(ratio: Tensor) -> tuple[int, ...]:
    flat = int(ratio.argmax())
    index = []
    for size in reversed(ratio.shape):
        index.append(flat % size)
        flat //= size
    return tuple(reversed(index))


def assert_close(
    got: Tensor,
    want: Tensor,  # float64 oracle of the same shape
    family: str,
    *,
    dtype: torch.dtype | None = None,  # of the computation; default: of `got`
    context: str = "",
) -> None:
    """``got`` is finite and within the table's bound of ``want``, without a systematic lean."""
    got, want = got.detach(), want.detach()
    dtype = got.dtype if dtype is None else dtype
    where = f"{family}/{dtype} {context}".strip()
    assert want.dtype is torch.float64, f"{where}: the oracle must be float64, is {want.dtype}"
    assert got.shape == want.shape, f"{where}: shape {tuple(got.shape)}, oracle {tuple(want.shape)}"
    assert want.numel() > 0, f"{where}: nothing to compare"
    assert torch.isfinite(want).all(), f"{where}: the oracle is not finite"
    finite = torch.isfinite(got)
    assert finite.all(), (
        f"{where}: {int((~finite).sum())} of {got.numel()} values are NaN or infinite, "
        f"first at {tuple((~finite).nonzero()[0].tolist())}"
    )
    signal = float((want != 0).double().mean())
    assert signal >= _SIGNAL, f"{where}: the oracle is zero in {1 - signal:.0%} of its values"

    limit = tolerance(family, dtype)
    scale = want.abs().amax(-1, keepdim=True) if want.dim() else want.abs()
    unit = ulp(want, dtype)
    error = got.double() - want
    bound = limit.ulps * unit + limit.relative * scale
    # An all-zero row of the oracle allows no error at all.
    ratio = torch.where(error == 0, torch.zeros_like(error), error.abs() / bound)
    at = _worst_index(ratio)
    # For the half types: what is left for the last place once the accumulated error is granted.
    half = (error.abs() - limit.relative * scale).clamp_min(0) / unit
    seen = half if limit.ulps else error.abs() / scale
    worst = float(torch.where(error == 0, torch.zeros_like(error), seen).max())
    WORST[family, dtype] = max(WORST.get((family, dtype), 0.0), worst)
    assert float(ratio[at]) <= 1, (
        f"{where}: worst at {at}: got {float(got[at])!r}, oracle {float(want[at])!r}, "
        f"{float(ratio[at]):.3g} times the bound {float(bound[at]):.3g}; "
        f"{int((ratio > 1).sum())} of {ratio.numel()} values beyond it"
    )
    if error.numel() >= _BIAS_SAMPLES:
        lean = float((error * want.sign() / bound).nan_to_num(0.0).mean())
        assert abs(lean) <= max(_BIAS_LIMIT, _BIAS_NOISE / error.numel() ** 0.5), (
            f"{where}: errors lean {'away from' if lean > 0 else 'towards'} zero, "
            f"mean signed error {lean:.3g} of the bound"
        )


def assert_row_relative(got: Tensor, want: Tensor, limit: float, context: str = "") -> float:
    """Each row's error is at most ``limit`` of the row's length; returns the worst."""
    assert want.dtype is torch.float64 and got.shape == want.shape, context
    assert torch.isfinite(got).all(), f"{context}: NaN or infinity"
    length = torch.linalg.vector_norm(want, dim=-1)
    assert (length > 0).all(), f"{context}: the oracle has a zero row"
    error = torch.linalg.vector_norm(got.detach().double() - want, dim=-1) / length
    worst = int(error.argmax())
    assert float(error.max()) <= limit, (
        f"{context}: row {worst} is off by {float(error.max()):.3g} of its length, limit {limit:.3g}"
    )
    return float(error.max())


def assert_same_bits(got: Tensor, want: Tensor, context: str = "") -> None:
    """Equal to the last bit, finite, and not all zero."""
    assert got.shape == want.shape and got.dtype == want.dtype, context
    assert torch.isfinite(want).all() and bool((want != 0).any()), f"{context}: no signal"
    differ = got != want
    assert not differ.any(), (
        f"{context}: {int(differ.sum())} of {got.numel()} values differ, "
        f"first at {tuple(differ.nonzero()[0].tolist())}"
    )

"""Asserters on tensors and figures; each refuses NaN first and requires an oracle with signal.

None takes a number to compare with: a family of tests/support/tolerances.py says what is allowed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.support.comparer import Found, compare, note, spacing
from tests.support.tolerances import LIMITS


def _hold(worst: float, family: str, dtype: torch.dtype, told: str) -> float:
    name = name_of(dtype)
    limit, _ = LIMITS[family, name]
    assert worst <= limit, f"{family}/{name} {told}: {worst:.3g} is beyond {limit:.3g}"
    note(family, name, worst)
    return worst


def name_of(dtype: torch.dtype) -> str:
    """As the table names it."""
    return str(dtype).removeprefix("torch.")


def ulp(value: Tensor, dtype: torch.dtype) -> Tensor:
    """One unit in the last place of ``dtype`` at each float64 value, subnormals included."""
    return torch.from_numpy(np.asarray(spacing(value.numpy(), name_of(dtype))))


def assert_close(
    got: Tensor,
    want: Tensor,  # float64 oracle of the same shape
    family: str,
    *,
    dtype: torch.dtype | None = None,  # of the computation; default: of `got`
    context: str = "",
) -> Found:
    """``got`` is finite and within the table's bound of ``want``, without a systematic lean."""
    name = name_of(got.dtype if dtype is None else dtype)
    assert want.dtype is torch.float64, f"{family}: the oracle must be float64, is {want.dtype}"
    wide, oracle = (t.detach().double().cpu().numpy() for t in (got, want))
    return compare(wide, oracle, family, name, context)


def assert_row_relative(
    got: Tensor,  # [.., D]
    want: Tensor,  # float64 oracle of the same shape
    family: str,  # of LIMITS
    *,
    dtype: torch.dtype | None = None,  # of the computation; default: of `got`
    context: str = "",
) -> float:
    """Each row's error is at most the family's share of the row's length; returns the worst."""
    assert want.dtype is torch.float64 and got.shape == want.shape and want.numel(), context
    assert torch.isfinite(got).all(), f"{context}: NaN or infinity"
    length = torch.linalg.vector_norm(want, dim=-1)
    assert (length > 0).all(), f"{context}: the oracle has a zero row"
    error = torch.linalg.vector_norm(got.detach().double() - want, dim=-1) / length
    told = f"{context} row {int(error.argmax())}, of its length"
    return _hold(float(error.max()), family, got.dtype if dtype is None else dtype, told)


def assert_figures(
    got: Any,  # a number, or a tensor, an array or a list of them
    want: Any,  # the oracle, of the same shape; NaN asks for NaN
    family: str,  # of LIMITS
    *,
    dtype: torch.dtype = torch.float64,  # of the computation
    scale: float | None = None,  # what the error is a share of; default: the oracle's largest magnitude
    context: str = "",
) -> float:
    """Losses, lengths, metrics: each within the family's share of ``scale``; returns the worst error."""
    ours, oracle = (
        np.asarray(v.detach().cpu().double() if isinstance(v, Tensor) else v, np.float64) for v in (got, want)
    )
    assert ours.shape == oracle.shape and oracle.size, f"{context}: {ours.shape}, oracle {oracle.shape}"
    known = ~np.isnan(oracle)
    assert np.isfinite(oracle[known]).all() and known.any(), f"{context}: the oracle is not finite"
    alike = np.array_equal(np.isnan(ours), ~known) and np.isfinite(ours[known]).all()
    assert alike, f"{context}: NaN or infinity at other places"
    scale = float(np.abs(oracle[known]).max()) if scale is None else scale
    assert scale > 0, f"{context}: the oracle is all zero, and no scale is given"
    error = np.abs(ours - oracle)[known] / scale
    return _hold(float(error.max()), family, dtype, f"{context} value {int(error.argmax())}")


def assert_cosine(
    got: Tensor,  # [N, D]
    want: Tensor,  # [N, D]
    family: str,  # of LIMITS
    *,
    dtype: torch.dtype,  # of the computation
    share: float = 1.0,  # of the rows that must be near
    context: str = "",
) -> float:
    """1 − cosine of rows: at most the family's limit for ``share`` of them; returns the worst of those."""
    assert torch.isfinite(got).all() and torch.isfinite(want).all(), f"{context}: NaN or infinity"
    assert bool((want != 0).any(-1).all()), f"{context}: the oracle has a zero row"
    apart = 1 - torch.cosine_similarity(got.detach().double(), want.detach().double(), dim=-1)
    return _hold(float(apart.quantile(share)), family, dtype, f"{context} 1 − cosine")


def assert_same_scores(got: Tensor, want: Tensor, context: str = "") -> None:
    """Equal to the last bit, whatever they are: zeros, infinities; NaN where the other is NaN."""
    assert got.shape == want.shape and got.dtype == want.dtype, context
    whole = {torch.float32: torch.int32, torch.float64: torch.int64}[got.dtype]
    same = (got.view(whole) == want.view(whole)) | (got.isnan() & want.isnan())
    assert same.all(), f"{context}: {int((~same).sum())} of {got.numel()} values differ"


def assert_same_bits(got: Tensor, want: Tensor, context: str = "") -> None:
    """Equal to the last bit, finite, and not all zero."""
    assert got.shape == want.shape and got.dtype == want.dtype, context
    assert torch.isfinite(want).all() and bool((want != 0).any()), f"{context}: no signal"
    differ = got != want
    assert not differ.any(), (
        f"{context}: {int(differ.sum())} of {got.numel()} values differ, "
        f"first at {tuple(differ.nonzero()[0].tolist())}"
    )

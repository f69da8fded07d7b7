"""Asserters on tensors; each refuses NaN first and requires an oracle with signal."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tests.support.comparer import Found, compare, spacing
from tests.support.tolerances import LIMITS


def limits(family: str) -> dict[torch.dtype, float]:
    """What the table allows a family whose errors are not an element's, by dtype."""
    return {getattr(torch, name): bound for (other, name), (bound, _) in LIMITS.items() if other == family}


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

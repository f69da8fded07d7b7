"""AdamW's forms against torch.optim.AdamW."""

from __future__ import annotations

import pytest
import torch

from semobridge_ext.runtime import adamw
from tests.support.assertions import assert_close

STEPS, DECAY = 12, 0.3
RATES = [1e-2 * (1 + 0.4 * i) for i in range(STEPS)]


def start(dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(1001, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def gradient(step: int, dtype: torch.dtype) -> torch.Tensor:
    g = torch.randn(1001, generator=torch.Generator().manual_seed(2 + step), dtype=torch.float64).to(dtype)
    g[::7] = 0
    return g * 10.0 ** (step % 4 - 2)


def theirs(dtype: torch.dtype, compute: torch.dtype | None = None) -> torch.Tensor:
    """torch.optim's, from numbers of ``dtype``, in ``compute`` or in ``dtype`` itself."""
    p = start(dtype).to(compute)
    optimizer = torch.optim.AdamW([p], lr=1.0, weight_decay=DECAY, foreach=False)
    for step, rate in enumerate(RATES):
        optimizer.param_groups[0]["lr"] = rate
        p.grad = gradient(step, dtype).to(compute)
        optimizer.step()
    assert float((p - start(dtype)).abs().max()) > 0.01
    return p


def ours(dtype: torch.dtype, form: str) -> torch.Tensor:
    p, moments = start(dtype), (torch.zeros(1001, dtype=dtype), torch.zeros(1001, dtype=dtype))
    work = torch.empty_like(p)
    for step, lr in enumerate(RATES):
        numbers = dict(zip(("rate", "root"), adamw.corrections(lr, step + 1), strict=True))
        numbers["keep"] = 1 - lr * DECAY
        if form == "host":
            adamw.update(p, gradient(step, dtype), *moments, **numbers)
            continue
        read = {name: torch.tensor(value, dtype=dtype) for name, value in numbers.items()}
        one = form == "one launch"
        adamw.update(p, gradient(step, dtype), *moments, **read, work=work, one_launch=one)
    return p


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_host_numbers_give_the_bits_of_torch_optim(dtype: torch.dtype) -> None:
    assert torch.equal(ours(dtype, "host"), theirs(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("form", ["one launch", "two launches"])
def test_device_numbers_give_it_to_rounding(form: str, dtype: torch.dtype) -> None:
    assert_close(ours(dtype, form), theirs(dtype, torch.float64), "adamw")

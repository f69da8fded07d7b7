"""held.py: which changes of a tensor it sees, and that it keeps the memory it compares."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from semobridge_ext.runtime.held import Held

CHANGES = {
    "in place": lambda t: t.mul_(2),
    "data": lambda t: setattr(t, "data", torch.ones(4, 4)),
    "transposed": lambda t: setattr(t, "data", t.data.T),
    "fewer rows": lambda t: setattr(t, "data", t.data[:3]),
    "emptied": lambda t: t.untyped_storage().resize_(0),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("place", [0, 1])
def test_sees(change: str, place: int):
    tensors = [torch.rand(4, 4), torch.rand(4, 4)]
    held = Held(*tensors)
    assert held.same(*tensors)
    CHANGES[change](tensors[place])
    assert not held.same(*tensors)


def test_equal_values_in_another_tensor_are_another_tensor():
    t = torch.rand(4, 4)
    held = Held(t)
    assert not held.same(t.clone()) and not held.same(t, t) and not held.same() and held.same(t)


def test_keeps_the_memory_it_compares():
    t = torch.zeros(1 << 12)
    held = Held(t)
    for _ in range(20):
        t.data = torch.zeros(1 << 12)
        assert not held.same(t)


def inference(rows: int) -> Tensor:
    with torch.inference_mode():
        return torch.rand(rows, 4)


def test_inference_tensors_are_compared_by_value():
    t = inference(4)
    held = Held(t)
    assert held.same(t)
    with torch.inference_mode():
        t[3, 3] += 1
    assert not held.same(t)

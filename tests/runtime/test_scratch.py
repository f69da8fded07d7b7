"""Named scratch: one memory a name, and none that a graph may still use is freed."""

from __future__ import annotations

import torch

from semobridge_ext.runtime.scratch import Scratch


def test_a_name_is_one_memory() -> None:
    scratch = Scratch(torch.device("cpu"))
    first = scratch.take("rows", (4, 6), torch.float32)
    assert first.shape == (4, 6) and first.is_contiguous() and not first.any()
    first.fill_(3)
    again = scratch.take("rows", (2, 5), torch.float32)
    assert again.data_ptr() == first.data_ptr() and bool((again == 3).all())
    assert scratch.take("rows", (4, 6), torch.float64).data_ptr() != first.data_ptr()
    assert scratch.take("columns", (4, 6), torch.float32).data_ptr() != first.data_ptr()


def test_outgrown_memory_stays_where_it_is() -> None:
    scratch = Scratch(torch.device("cpu"))
    address = scratch.take("rows", (8,), torch.float32).fill_(1).data_ptr()
    grown = scratch.take("rows", (800,), torch.float32)
    assert grown.data_ptr() != address and not grown.any()
    others = [torch.empty(8) for _ in range(50)]
    assert address not in [t.data_ptr() for t in others], "a captured graph would write into another's memory"
    assert scratch.take("rows", (8,), torch.float32).data_ptr() == grown.data_ptr()

"""What plain PyTorch does while a CUDA graph is captured: it does not look at the sums."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from semobridge_ext._ops.support_logits import eager


@pytest.mark.parametrize("capturing", [False, True])
def test_no_second_pass_in_a_capture(monkeypatch: pytest.MonkeyPatch, capturing: bool) -> None:
    queries, keys, labels = torch.eye(2, 3), torch.eye(3), torch.tensor([0, 1, 1])
    keys[0, 0] = float("nan")
    passes, chunked = [], eager.chunked_sums

    def counted(*given: Any, **named: Any) -> Tensor:
        passes.append(named)
        return chunked(*given, **named)

    monkeypatch.setattr(eager, "chunked_sums", counted)
    monkeypatch.setattr(eager, "_capturing", lambda _: capturing)
    out = eager.support_logits(queries, keys, labels, 2, 1.0, None)
    assert passes == ([{}] if capturing else [{}, {"apart": True}])
    assert out[:, 0].isnan().all() and out[:, 1].isnan().all() == capturing

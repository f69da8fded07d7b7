"""Which implementation trains: what is slower on purpose is never chosen unasked."""

from __future__ import annotations

import pytest
import torch

import semobridge_ext as sb
from semobridge_ext._engines.bridge_training.choice import choose
from semobridge_ext.runtime import thresholds
from tests.support.fake_gpu import CUDA, FakeGpu


@pytest.mark.parametrize("name,streamed", [("auto", False), ("native", False), ("triton", True)])
def test_streamed_losses_are_taken_on_request_alone(
    name: str, streamed: bool, monkeypatch: pytest.MonkeyPatch
):
    """They save memory and cost time: a measurement that names Triton changes nothing."""
    FakeGpu(monkeypatch)
    monkeypatch.setattr(thresholds, "choose", lambda *_: "triton")
    with sb.backend(name):
        assert choose("SeMoBridgeT.fit", CUDA, torch.float32).streamed is streamed

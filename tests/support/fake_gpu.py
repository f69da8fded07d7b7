"""A GPU as far as choices go: PyTorch's answers about a device that is not there."""

from __future__ import annotations

import contextlib
import importlib.util
import types

import pytest
import torch

from semobridge_ext.runtime import backend as _backend
from semobridge_ext.runtime import rules as _rules
from semobridge_ext.runtime import self_check as _self_check
from semobridge_ext.runtime import thresholds as _thresholds

CUDA = torch.device("cuda", 0)


class FakeGpu:
    """One device; what a test changes is asked anew.

    Args:
        capability: its architecture.
        built: the native module holds CUDA kernels.
        triton: Triton is installed.
    """

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        capability: tuple[int, int] = (9, 0),
        *,
        built: bool = True,
        triton: bool = True,
    ) -> None:
        self.capability, self.capturing, self.waits = capability, False, True
        monkeypatch.setattr(_backend, "HAS_CUDA", built)
        monkeypatch.setattr(_rules, "capability", lambda device: self.capability)
        monkeypatch.setattr(_thresholds, "_name", lambda device: "Test GPU")
        monkeypatch.setattr(_self_check, "_found", {})
        monkeypatch.setattr(_self_check, "_checks", dict(_self_check._checks))
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: self.capturing)
        monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0 if self.waits else 2)
        monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", self._ban)
        monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
        find = importlib.util.find_spec
        found = types.SimpleNamespace() if triton else None
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, *a: found if name == "triton" else find(name, *a)
        )
        _thresholds.measured.cache_clear()

    def _ban(self, mode: int) -> None:
        self.waits = mode == 0

    def passes(self, *ops: str) -> None:
        """The kernels of these operators agree with plain PyTorch."""
        for op in ops:
            _self_check.register(op, lambda device, dtype: [torch.ones(3, dtype=dtype)])

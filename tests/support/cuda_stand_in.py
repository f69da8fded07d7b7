"""What bench/gpu asks of torch.cuda, on a machine without a GPU: clocks that tick, and tensors on the CPU.

It shows that every line runs and that results are right; its times mean nothing.
"""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch


class Event:
    """A mark on the host's clock. Every other one has not been reached yet when it is asked for."""

    asked = 0

    def __init__(self, enable_timing: bool = False) -> None:
        assert enable_timing, "an event without timing has no elapsed_time"
        self.at: float | None = None

    def record(self) -> None:
        self.at = time.perf_counter()

    def query(self) -> bool:
        assert self.at is not None, "an event was asked for before it was recorded"
        Event.asked += 1
        return Event.asked % 2 == 0

    def elapsed_time(self, end: Event) -> float:
        assert self.at is not None and end.at is not None
        return (end.at - self.at) * 1e3


PROPERTIES = SimpleNamespace(name="Test GPU", major=9, minor=0, total_memory=80 << 30, L2_cache_size=1 << 12)


def install(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Puts it in the place of torch.cuda; the cycles of every `_sleep` come back."""
    slept: list[int] = []
    values: dict[str, Any] = {
        "Event": Event, "_sleep": slept.append, "is_available": lambda: True,
        "get_device_properties": lambda *_: PROPERTIES, "get_device_capability": lambda *_: (9, 0),
        "get_device_name": lambda *_: PROPERTIES.name, "memory_allocated": lambda: 0,
        "max_memory_allocated": lambda: 1 << 20, "is_current_stream_capturing": lambda: False,
        "current_device": lambda: 0,
    }  # fmt: skip
    for name in ("synchronize", "reset_peak_memory_stats", "empty_cache"):
        values[name] = lambda *_: None
    for name, value in values.items():
        monkeypatch.setattr(torch.cuda, name, value)
    if hasattr(torch, "accelerator"):  # PyTorch 2.6; its optimizers ask whether a stream is being captured
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *_, **__: None)
    return slept

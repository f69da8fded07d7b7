"""The most that a process had in memory while it did something."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any


def status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"/proc/self/status has no {field}")


def added(call: Callable[[], Any]) -> tuple[int, Any]:
    """Bytes above what was there before, at their peak; and what the call gives."""
    before = status_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the high-water mark starts here
    found = call()
    return status_bytes("VmHWM") - before, found

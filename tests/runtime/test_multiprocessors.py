"""How work is cut so that a device is full."""

from __future__ import annotations

import pytest
import torch

from semobridge_ext.runtime import multiprocessors as module
from semobridge_ext.runtime.multiprocessors import ASSUMED, multiprocessors, parts_to_fill


def idle(programs: int, parts: int, places: int) -> float:
    """The share of places that stand empty, wave after wave."""
    used = programs * parts
    waves = -(-used // places)
    return 1 - used / (waves * places)


@pytest.mark.parametrize("places", [108, 132, 148])
@pytest.mark.parametrize("programs", [1, 2, 7, 8, 60, 90, 131, 132, 157, 512])
def test_few_places_stand_idle(programs: int, places: int):
    parts = parts_to_fill(programs, 1 << 20, places)
    assert parts >= 1 and idle(programs, parts, places) <= 0.25
    best = min(idle(programs, p, places) for p in range(1, max(2, 4 * places // programs + 1)))
    assert idle(programs, parts, places) <= max(0.1, best)


def test_a_program_is_cut_no_further_than_it_may():
    assert parts_to_fill(1, 1, 132) == 1
    assert parts_to_fill(1, 5, 132) == 5
    assert parts_to_fill(8, 1 << 20, 132) == 16
    assert parts_to_fill(10_000, 1 << 20, 132) == 1


def test_a_device_is_asked_once(monkeypatch: pytest.MonkeyPatch):
    asked = []

    class Properties:
        multi_processor_count = 114

    def ask(index: int) -> Properties:
        asked.append(index)
        return Properties()

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", ask)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    module._asked.cache_clear()
    found = [multiprocessors(torch.device(name)) for name in ("cuda:3", "cuda:3", "cuda", "cuda:2", "cpu")]
    module._asked.cache_clear()
    assert found == [114, 114, 114, 114, ASSUMED] and asked == [3, 2]

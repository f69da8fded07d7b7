"""Where a kernel runs: PyTorch's current device is left as it is."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from semobridge_ext.runtime.views import place


class Devices:
    """c10/cuda: the current device of CUDA, and the one that PyTorch remembers where it has no context."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *contexts: int) -> None:
        self.contexts, self.cuda, self.remembered = set(contexts), 0, -1
        monkeypatch.setattr(torch.cuda, "current_device", self.current)
        monkeypatch.setattr(torch.cuda, "device", lambda device: self.guard(device.index))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=77))

    def current(self) -> int:
        return self.cuda if self.remembered < 0 else self.remembered

    def guard(self, index: int):
        devices, before = self, self.current()

        class Guard:
            def __enter__(self) -> None:
                devices.remembered, devices.cuda = -1, index
                devices.contexts.add(index)

            def __exit__(self, *_: object) -> None:
                if before in devices.contexts:
                    devices.cuda = before
                else:
                    devices.remembered = before

        return Guard()


def on(index: int) -> SimpleNamespace:
    return SimpleNamespace(is_cuda=True, device=torch.device("cuda", index))


def test_a_thread_s_unused_device_stays_without_a_context(monkeypatch: pytest.MonkeyPatch):
    devices = Devices(monkeypatch, 1)
    assert place(on(1)) == (1, 77)
    assert devices.contexts == {1} and devices.current() == 0, "the thread's device, without a context"
    assert devices.cuda == 1, "the launcher finds its device current and sets none"


def test_a_used_device_stays_current(monkeypatch: pytest.MonkeyPatch):
    devices = Devices(monkeypatch, 0, 1)
    assert place(on(1)) == (1, 77) and devices.cuda == 0 and devices.current() == 0
    assert place(on(0)) == (0, 77) and devices.remembered == -1


def test_cpu_tensors_are_the_emulation_s():
    assert place(torch.ones(1)) == (0, 0)

"""Which tile a launch takes: the list, its pruning, and where nothing is measured."""

from __future__ import annotations

import os

import pytest
import torch

triton = pytest.importorskip("triton")
from semobridge_ext._ops.project_normalize.triton import KERNEL, project_normalize_fwd_kernel  # noqa: E402
from semobridge_ext.runtime import triton_tuning as tuning  # noqa: E402

HALF = torch.empty(0, dtype=torch.float16)
CALL = {"x_ptr": HALF, "WIDEN": False, "PARTS": 1, "BLOCK_M": 512}


def test_pruning_follows_the_device(monkeypatch: pytest.MonkeyPatch):
    small, large = (KERNEL.usable(CALL, limit << 10) for limit in (48, 227))
    assert small and len(small) < len(large)
    assert all(KERNEL.shared(c, CALL) <= 48 << 10 for c in small)
    monkeypatch.setattr(tuning, "shared_limit", lambda: 48 << 10)
    assert KERNEL.prune(KERNEL.configs, {"x_ptr": HALF}, WIDEN=False, PARTS=1, BLOCK_M=512) == small
    assert KERNEL.unmeasured(CALL, 48 << 10) in small
    assert KERNEL.unmeasured(CALL, 227 << 10) == KERNEL.fixed(CALL)


def test_nothing_is_measured_in_a_capture(monkeypatch: pytest.MonkeyPatch):
    """Triton takes a configuration that is left alone without timing it (Autotuner.run)."""
    monkeypatch.setattr(tuning, "_capturing", lambda: True)
    monkeypatch.setattr(tuning, "shared_limit", lambda: 227 << 10)
    kept = KERNEL.prune(KERNEL.configs, {"x_ptr": HALF}, WIDEN=False, PARTS=1, BLOCK_M=512)
    assert kept == [KERNEL.fixed(CALL)]


def test_the_choice_is_kept_on_disk_by_bucket_and_dtype():
    tuner = KERNEL.tuner
    assert tuner.keys == ["bucket"] and "bucket" in project_normalize_fwd_kernel.arg_names
    assert tuner.cache_results or os.environ.get("TRITON_INTERPRET") == "1"
    x = torch.empty(1)
    assert tuning.bucket(x, 65, 512) == tuning.bucket(x, 128, 500)
    assert tuning.bucket(x, 65, 512) != tuning.bucket(x, 64, 512) != tuning.bucket(x, 512, 64)
    assert tuning.bucket(x, 1, 0) == 0


@pytest.mark.parametrize("word,measured", [(None, True), ("0", False)])
def test_measuring_can_be_switched_off(word, measured: bool, monkeypatch: pytest.MonkeyPatch):
    """A CUDA tensor's launch, with both ways of launching replaced."""
    taken = []

    class Launcher:
        def __init__(self, name: str, arg_names: list[str]) -> None:
            self.name, self.arg_names = name, arg_names

        def __getitem__(self, grid):
            return lambda *args, **constants: taken.append((self.name, constants))

    if word is None:
        monkeypatch.delenv("SEMOBRIDGE_TRITON_AUTOTUNE", raising=False)
    else:
        monkeypatch.setenv("SEMOBRIDGE_TRITON_AUTOTUNE", word)
    monkeypatch.setattr(tuning, "wrap_triton", lambda kernel: kernel)
    kernel = tuning.Kernel(Launcher("fixed", ["x_ptr"]), (), KERNEL.fixed, KERNEL.fits, KERNEL.shared)
    kernel.configs, kernel.tuner = KERNEL.configs, Launcher("tuner", ["x_ptr"])
    with torch._subclasses.fake_tensor.FakeTensorMode():
        x = torch.empty(3, 4, device="cuda", dtype=torch.float16)
        kernel.launch(x, lambda meta: (1,), x, WIDEN=False, PARTS=1, BLOCK_M=512)
    ((name, constants),) = taken
    assert name == ("tuner" if measured else "fixed")
    assert ("BLOCK_N" in constants and constants["num_warps"] == 8) is not measured

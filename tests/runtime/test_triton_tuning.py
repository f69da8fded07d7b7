"""Which tile a launch takes: the list, its pruning, and where nothing is measured."""

from __future__ import annotations

import os
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton")
from semobridge_ext._ops.support_logits.triton import KERNEL  # noqa: E402
from semobridge_ext.runtime import triton_tuning as tuning  # noqa: E402

HALF = torch.empty(0, dtype=torch.float16)
SHAPE = {"n": 1024, "D0": 512, "D1": 0, "EVEN": True, "WIDEN": False}
CALL = {"q_ptr": HALF, "k_ptr": HALF, **SHAPE}


def test_pruning_follows_the_device(monkeypatch: pytest.MonkeyPatch):
    small, large = (KERNEL.usable(CALL, limit << 10) for limit in (48, 227))
    assert small and len(small) < len(large)
    assert all(KERNEL.shared(c, CALL) <= 48 << 10 for c in small)
    monkeypatch.setattr(tuning, "shared_limit", lambda: 48 << 10)
    assert KERNEL.prune(KERNEL.configs, {"q_ptr": HALF, "k_ptr": HALF}, **SHAPE) == small
    assert KERNEL.unmeasured(CALL, 48 << 10) in small
    assert KERNEL.unmeasured(CALL, 227 << 10) == KERNEL.fixed(CALL)


class Launcher:
    """Either way of launching; `taken` gets its name and what it was called with."""

    best_config = KERNEL.configs[3]

    def __init__(self, name: str, taken: list[tuple[str, dict]]) -> None:
        self.name, self.taken, self.arg_names = name, taken, ["q_ptr", "k_ptr", "bucket"]
        self.__name__, self.configs_timings = name, {}

    def __getitem__(self, grid):
        return lambda *args, **constants: self.taken.append((self.name, constants))


def replaced(taken: list[tuple[str, dict]]) -> tuning.Kernel:
    """The kernel with both ways of launching replaced."""
    kernel = tuning.Kernel(Launcher("fixed", taken), (), KERNEL.fixed, KERNEL.fits, KERNEL.shared)
    kernel.configs, kernel.tuner, kernel.keys = KERNEL.configs, Launcher("tuner", taken), KERNEL.keys
    return kernel


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Launches of a fake CUDA tensor, `x`, as if it held values; whether a stream is being captured."""
    with torch._subclasses.fake_tensor.FakeTensorMode():  # before PyTorch hears of a GPU that is not there
        x = torch.empty(3, 4, device="cuda", dtype=torch.float16)
    state = {"capturing": False, "x": x}
    monkeypatch.delenv("SEMOBRIDGE_TRITON_AUTOTUNE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: state["capturing"])
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(tuning, "shared_limit", lambda: 227 << 10)
    monkeypatch.setattr(tuning, "is_traced", lambda tensor: False)
    return state


def tile(constants: dict) -> dict:
    return {name: constants[name] for name in ("BLOCK_N", "BLOCK_S", "BLOCK_D") if name in constants}


def test_the_tuner_is_not_asked_in_a_capture(on_a_gpu: dict[str, Any]):
    """Triton 3.6's tuner times even a single tile, and waits for the device: the capture would break."""
    taken: list[tuple[str, dict]] = []
    kernel = replaced(taken)

    def launch(capturing: bool, bucket: int) -> tuple[str, dict]:
        on_a_gpu["capturing"] = capturing
        x = on_a_gpu["x"]
        kernel.launch(x, lambda meta: (1,), x, x, bucket, **SHAPE)
        return taken[-1][0], tile(taken[-1][1])

    fixed = KERNEL.fixed(CALL).kwargs
    assert launch(True, 7) == ("fixed", fixed), "never tuned: the fixed tile, launched without the tuner"
    assert launch(False, 7) == ("tuner", {}), "what a capture took is not what the tuner found"
    assert launch(True, 7) == ("fixed", Launcher.best_config.kwargs) and fixed != Launcher.best_config.kwargs
    assert launch(True, 8) == ("fixed", fixed), "another size was not tuned"


def test_the_tuner_tells_compiled_programs_apart():
    """The key held the sizes and dtypes alone: rows of one width took the tile of another in its bucket."""
    if not KERNEL.function.__class__.__name__.startswith("Interpreted"):
        assert {"bucket", "D0", "EVEN", "HAS_ORDER"} <= set(KERNEL.keys) and KERNEL.tuner.keys == KERNEL.keys
        assert not {"BLOCK_N", "BLOCK_S"} & set(KERNEL.keys), "a tile is not told apart by itself"
    x = torch.empty(1)
    one, two = (KERNEL._key(x.device, {"x": x, "bucket": 5, "D0": n}) for n in (1, 2))
    assert ("D0" not in KERNEL.keys) or one != two


def test_devices_of_one_machine_have_their_own_tiles(
    on_a_gpu: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    """The current device's shared memory decided for a tensor on another, and Triton's tuner knows none."""
    current = [0]

    @contextmanager
    def device(wanted: torch.device):
        before, current[0] = current[0], wanted.index
        yield
        current[0] = before

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(tuning, "shared_limit", lambda: (227, 48)[current[0]] << 10)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: on_a_gpu["capturing"])
    with torch._subclasses.fake_tensor.FakeTensorMode():
        tensors = [torch.empty(3, 4, device=f"cuda:{i}", dtype=torch.float16) for i in range(2)]
    taken: list[tuple[str, dict]] = []
    kernel, made = replaced(taken), []
    monkeypatch.setattr(kernel, "_new_tuner", lambda: made.append(Launcher("other tuner", taken)) or made[-1])
    on_a_gpu["capturing"] = True
    for x, limit in zip(tensors, (227, 48), strict=True):
        kernel.launch(x, lambda meta: (1,), x, x, 7, **SHAPE)
        assert tile(taken[-1][1]) == KERNEL.unmeasured(CALL, limit << 10).kwargs
    assert taken[0] != taken[1]
    on_a_gpu["capturing"] = False
    for x in (*tensors, *tensors):
        kernel.launch(x, lambda meta: (1,), x, x, 7, **SHAPE)
    assert [name for name, _ in taken[2:]] == ["tuner", "other tuner"] * 2 and len(made) == 1


def test_tiles_that_cannot_run_are_told(on_a_gpu: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tuning, "skipped", [])
    kernel = replaced([])
    kernel.tuner.configs_timings = {KERNEL.configs[0]: [float("inf")] * 3, KERNEL.configs[1]: [1.0, 1.0, 1.0]}
    x = on_a_gpu["x"]
    for bucket in (1, 2):
        kernel.launch(x, lambda meta: (1,), x, x, bucket, **SHAPE)
    (line,) = tuning.skipped
    assert line.startswith("fixed: a tile was skipped") and "BLOCK_N: 128" in line


def test_the_choice_is_kept_on_disk_by_bucket_and_dtype():
    tuner = KERNEL.tuner
    assert tuner.keys[0] == "bucket" and "bucket" in KERNEL.function.arg_names
    assert tuner.cache_results or os.environ.get("TRITON_INTERPRET") == "1"
    x = torch.empty(1)
    assert tuning.bucket(x, 65, 512) == tuning.bucket(x, 128, 500)
    assert tuning.bucket(x, 65, 512) != tuning.bucket(x, 64, 512) != tuning.bucket(x, 512, 64)
    assert tuning.bucket(x, 1, 0) == 0


@pytest.mark.parametrize("word,measured", [(None, True), ("0", False)])
def test_measuring_can_be_switched_off(word, measured: bool, monkeypatch: pytest.MonkeyPatch):
    """A CUDA tensor's launch, with both ways of launching replaced."""
    taken: list[tuple[str, dict]] = []
    if word is None:
        monkeypatch.delenv("SEMOBRIDGE_TRITON_AUTOTUNE", raising=False)
    else:
        monkeypatch.setenv("SEMOBRIDGE_TRITON_AUTOTUNE", word)
    monkeypatch.setattr(tuning, "wrap_triton", lambda kernel: kernel)
    kernel = replaced(taken)
    with torch._subclasses.fake_tensor.FakeTensorMode():
        x = torch.empty(3, 4, device="cuda", dtype=torch.float16)
        kernel.launch(x, lambda meta: (1,), x, x, **SHAPE)
    ((name, constants),) = taken
    assert name == ("tuner" if measured else "fixed")
    assert ("BLOCK_N" in constants and "num_warps" in constants) is not measured

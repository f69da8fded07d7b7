"""What the emulation does and what it refuses, shown on small kernels (selftest.cu)."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from tests.cuda_emulation.build import HERE, Emulation
from tests.support.source_tree import ROOT, environment, run

_CALL = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy as np
from tests.cuda_emulation.run_cases import ORDERS, load
m = load(sys.argv[2])
m.set_order(ORDERS.index(sys.argv[4]), 3)
x, y = np.arange(256, dtype=np.float32), np.zeros(256, np.float32)
if sys.argv[3].startswith("around"):
    m.set_processors(1 if "too large" in sys.argv[3] else 2, 2)
    x[...] = 0  # the barrier's count
m.selftest(sys.argv[3], x.ctypes.data, y.ctypes.data)
print(*y.view(np.int32 if sys.argv[3] == "count" else np.float32))
"""


def call(emulation: Emulation, kernel: str, order: str) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-c", _CALL, ROOT, emulation.module, kernel, order)
    return run(*command, env=environment(), cwd=HERE)


def result(emulation: Emulation, kernel: str, order: str = "ascending") -> np.ndarray:
    done = call(emulation, kernel, order)
    assert done.returncode == 0, done.stderr
    return np.array([float(v) for v in done.stdout.split()])


@pytest.mark.parametrize("order", ["ascending", "descending", "shuffled"])
def test_barrier_and_shared_memory(emulation: Emulation, order: str):
    want = np.arange(192).reshape(3, 64)[:, ::-1].ravel()
    assert (result(emulation, "reverse", order)[:192] == want).all()
    broken = result(emulation, "reverse without its barrier", order)[:192]
    assert np.isnan(broken).any(), "what was read too early must be NaN"


def test_shared_memory_is_poisoned(emulation: Emulation):
    assert np.isnan(result(emulation, "unwritten")[:64]).all()


def test_warp_operations(emulation: Emulation):
    t = np.arange(64)
    lane, base = t % 32, t // 32 * 32
    got = result(emulation, "warp", "shuffled")
    assert (got[:64] == t + (t ^ 1)).all()
    assert (got[64:128] == np.where(lane < 3, t, t - 3)).all()
    assert (got[128:192] == base + 7).all()
    assert (got[192:] == 11).all()  # multiples of 3 in 0..31 and in 32..63


def test_atomics_and_grid(emulation: Emulation):
    assert result(emulation, "count", "shuffled")[0] == 5 * 3 * 2 * 64


@pytest.mark.parametrize("order", ["ascending", "descending", "shuffled"])
def test_blocks_of_a_cooperative_launch_meet(emulation: Emulation, order: str):
    want = (np.arange(256) + 64) % 256
    assert (result(emulation, "around", order) == want).all()
    assert (result(emulation, "around without a barrier", order) != want).any()


@pytest.mark.parametrize(
    "kernel,told",
    [
        ("divergent barrier", r"divergent synchronisation: .*barrier of line.*has ended"),
        ("two barriers", "divergent barrier: lines"),
        ("divergent shuffle", "divergent synchronisation: .*waits for its warp"),
        ("barrier against shuffle", "divergent synchronisation: .*waits"),
        ("count without a fence", "a counter rises before all of the block have fenced"),
        ("half mask", "must name all 32 lanes"),
        ("too many threads", "launch failed: invalid configuration"),
        ("around but for one", "blocks wait for ever: thread 0 of block . naps"),
        ("around, too large", "cooperative launch failed: too many blocks"),
    ],
)
def test_refuses(emulation: Emulation, kernel: str, told: str):
    done = call(emulation, kernel, "ascending")
    assert done.returncode == 1, "an error, not a crash"
    with pytest.raises(RuntimeError, match=told):
        raise RuntimeError(done.stderr.strip().splitlines()[-1])

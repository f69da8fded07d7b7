"""How a launcher treats the process around it (csrc/core/launch.cuh): devices, contexts, captures, errors.

The emulation keeps the rules of CUDA 12 and later: cudaSetDevice makes a context, and a kernel that was not
loaded cannot be launched while a stream is captured.
"""

from __future__ import annotations

import subprocess
import sys

from tests.cuda_emulation.build import Emulation
from tests.support.source_tree import ROOT, environment, run

# In a process of its own: what was loaded stays loaded.
PROGRAM = """
import sys
import numpy as np
from tests.cuda_emulation.run_cases import load
m = load(sys.argv[1])
x, out = np.ones((2, 8), np.float32), np.zeros((2, 8), np.float32)
NOTHING = (0, 0, 0, 0, 0)
def view(a): return (a.ctypes.data, 0, 2, 8, 8)
def launch(device): m.normalize_rows_cuda(view(x), NOTHING, True, 1.0, view(out), 0, device, 0)
"""


def told(emulation: Emulation, program: str) -> subprocess.CompletedProcess[str]:
    return run(
        sys.executable, "-c", PROGRAM + program, emulation.module, env=environment(), cwd=ROOT, timeout=60
    )


def holds(emulation: Emulation, program: str) -> None:
    done = told(emulation, program)
    assert done.returncode == 0, done.stderr[-2000:]


def test_no_context_is_made_on_a_device_that_is_not_used(emulation: Emulation):
    holds(emulation, "m.set_device(0); launch(1); assert m.contexts() == [1], m.contexts()")


def test_a_device_in_use_is_current_again(emulation: Emulation):
    holds(emulation, "m.set_contexts([0]); launch(1); assert m.device() == 0 and m.contexts() == [0, 1]")


def test_the_current_device_is_not_set(emulation: Emulation):
    holds(emulation, "launch(0); assert m.device() == 0 and m.contexts() == []")


def test_a_kernel_is_loaded_before_a_capture_meets_it(emulation: Emulation):
    """Its first launch, inside of a user's capture."""
    holds(
        emulation,
        """
m.set_capturing(True)
launch(0)
assert out.any() and m.capture_mode() == 0, "the thread's mode is as it was"
m.set_contexts([0])
launch(1)  # loaded once a device
""",
    )


def test_a_refused_launch_leaves_no_error_behind(emulation: Emulation):
    """PyTorch would report it as its own at its next launch."""
    holds(
        emulation,
        """
try:
    m.selftest("too many threads", 0, out.ctypes.data)
except RuntimeError as error:
    assert "invalid configuration" in str(error)
else:
    raise AssertionError("not refused")
assert m.last_error() == 0
""",
    )

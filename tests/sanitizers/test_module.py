"""The native module as Python calls it, under AddressSanitizer and UndefinedBehaviorSanitizer."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from tests.sanitizers.module import package_with, run_on
from tests.support.places import runnable_isas
from tests.support.source_tree import ROOT, environment, run

SECONDS = float(os.environ.get("FUZZ_SECONDS", "8"))  # `make sanitize` gives it longer
SEED = int(os.environ.get("FUZZ_SEED", "1000"))
CALLS = ROOT / "tests" / "sanitizers" / "calls.py"


def report(done) -> dict:
    assert done.returncode == 0, done.stderr[-6000:]
    found = json.loads(done.stdout.splitlines()[-1])
    print(f"  {sum(found['calls'].values())} calls, {found['refused']} of them refused")
    assert all(found["calls"].values()) and 0 < found["refused"] < sum(found["calls"].values()) / 2
    return found


def test_random_calls_end_well():
    """Without a sanitizer: right shapes, the same result twice, the package's own errors."""
    found = report(run(sys.executable, CALLS, 4, 1, env=environment()))
    assert sum(found["calls"].values()) > 50


@pytest.mark.slow
@pytest.mark.parametrize(
    "isa",  # the portable kernels take the longest, by far
    [pytest.param(i, marks=pytest.mark.campaign) if i == "portable" else i for i in runnable_isas()],
)
def test_random_calls_are_clean(isa: str, tmp_path: Path):
    folder = package_with("address", tmp_path)
    found = report(run_on(folder, "address", CALLS, SECONDS, SEED, SEMOBRIDGE_ISA=isa))
    assert sum(found["calls"].values()) > 50


@pytest.mark.slow
def test_the_sanitizer_sees_a_wrong_address(tmp_path: Path):
    """A row too many, handed to the core past every check."""
    program = tmp_path / "program.py"
    program.write_text(
        "import torch, semobridge_ext as sb; from semobridge_ext.runtime.backend import _C; import sys\n"
        "assert sys.argv[1] in sb.__file__\n"
        "x = torch.randn(40, 64); out = torch.empty(40, 64); p = sb.ops.Projection(torch.eye(64))\n"
        "p._run(x.data_ptr(), 0, 41, 64, out.data_ptr(), 64, 0, 0, 0, 1)\n"
    )
    folder = package_with("address", tmp_path)
    done = run_on(folder, "address", program, folder)
    assert done.returncode != 0 and "heap-buffer-overflow" in done.stderr, done.stderr[-2000:]

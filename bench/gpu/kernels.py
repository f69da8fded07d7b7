"""Every kernel on a GPU for real, against float64: `python bench/gpu/kernels.py`, a part of `make gpu-check`.

The cases are those of tests/cuda_emulation, unchanged: their arrays lie in pinned host memory, which a GPU
reaches under the same address. The Triton programs are those of tests/ops/triton, compiled instead of
interpreted. The last line is the worst errors as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from semobridge_ext.runtime import backend as _backend

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.cuda_emulation import all_cases, buffers, cases  # noqa: E402


class Synchronized:
    """The native module with every kernel awaited, so that the host sees what it wrote."""

    def __init__(self, module: Any, wait: Callable[[], None]) -> None:
        self._module, self._wait = module, wait

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._module, name)
        if not callable(found):
            return found

        def call(*args: Any) -> Any:
            result = found(*args)
            self._wait()
            return result

        return call


def pinned(size: int) -> np.ndarray:
    return torch.empty(max(size, 1), dtype=torch.uint8, pin_memory=True).numpy()[:size]


def run_cases(
    module: Any, wait: Callable[[], None], allocate: Callable[[int], np.ndarray], *names: str
) -> dict[str, float]:
    """The cases of tests/cuda_emulation on this module, all without names; the worst errors by name."""
    before = buffers.allocate
    buffers.allocate = allocate
    try:
        for name in names or all_cases.CASES:
            all_cases.CASES[name](Synchronized(module, wait), np.random.default_rng(17))
            print(f"{name}: right", flush=True)
    finally:
        buffers.allocate = before
    return cases.WORST


def run_triton() -> dict[str, float]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "ops" / "triton" / "interpret.py")],
        env=environment | {"CHECK_DEVICE": "cuda"}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    if done.returncode != 0:
        raise SystemExit("gpu_kernels: a Triton kernel is wrong on this GPU; the reason stands above")
    worst = json.loads(done.stdout.splitlines()[-1])["worst"]
    return {f"Triton {name}": error for name, error in worst.items()}


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--no-triton", action="store_true", help="the CUDA C++ kernels alone")
    options = parser.parse_args(argv)
    if not torch.cuda.is_available():
        raise SystemExit("gpu_kernels: no GPU that PyTorch can use; run it on a machine that has one")
    if not _backend.HAS_CUDA:
        raise SystemExit(
            "gpu_kernels: the native module holds no CUDA kernels; SEMOBRIDGE_CUDA=on builds them"
        )
    worst = run_cases(_backend._C, torch.cuda.synchronize, pinned)
    if not options.no_triton:
        worst = worst | run_triton()
    print(json.dumps(worst))


if __name__ == "__main__":
    main(sys.argv[1:])

"""Every kernel on a GPU for real, against float64: `python bench/gpu/kernels.py`, a part of `make gpu-check`.

The cases are those of tests/cuda_emulation, unchanged: their arrays lie in device memory of the exact size
(device_arrays.py), so that compute-sanitizer sees every access beside them. The Triton programs are those of
tests/ops/triton, compiled instead of interpreted. The last line is the worst errors as JSON.
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

from bench.gpu.device_arrays import CudaMemory, DeviceArrays, Memory  # noqa: E402
from tests.cuda_emulation import all_cases, buffers, cases  # noqa: E402


class OnDevice:
    """The native module, its kernels run on the device's copies of the arrays and awaited."""

    def __init__(self, module: Any, wait: Callable[[], None], arrays: DeviceArrays) -> None:
        self._module, self._wait, self._arrays = module, wait, arrays

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._module, name)
        if name.endswith("_cuda_phase"):
            return lambda *args: self._arrays.note(found, args)
        if not name.endswith("_cuda"):
            return found
        return lambda *args: self._arrays.call(found, args, self._wait)


def run_cases(module: Any, wait: Callable[[], None], memory: Memory, *names: str) -> dict[str, float]:
    """The cases of tests/cuda_emulation on this module, all without names; the worst errors by name."""
    before = buffers.allocate, buffers.GUARD
    arrays = DeviceArrays(memory)
    # Nothing beside the values: an allocation's end is what a sanitizer knows.
    buffers.allocate, buffers.GUARD = arrays.allocate, 0
    try:
        for name in names or all_cases.CASES:
            all_cases.CASES[name](OnDevice(module, wait, arrays), np.random.default_rng(17))
            print(f"{name}: right", flush=True)
    finally:
        buffers.allocate, buffers.GUARD = before
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
    worst = run_cases(_backend._C, torch.cuda.synchronize, CudaMemory(str(torch.version.cuda)))
    if not options.no_triton:
        worst = worst | run_triton()
    print(json.dumps(worst))


if __name__ == "__main__":
    main(sys.argv[1:])

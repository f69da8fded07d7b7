"""On a machine with a GPU: runs every kernel for real, compares with float64, times, writes a table.

`make gpu-check`, or `python bench/gpu_check.py [--out FILE.md]` in a build with CUDA. The cases are those of
tests/cuda_emulation, unchanged: their arrays lie in pinned host memory, which a GPU reaches under the
same address.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import semobridge_ext as sb
from semobridge_ext import _backend, reference

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.cuda_emulation import all_cases, buffers, cases  # noqa: E402


def refuse(reason: str) -> None:
    raise SystemExit(f"gpu_check: {reason}")


class Synchronized:
    """The native module with every kernel awaited, so that the host sees what it wrote."""

    def __init__(self, module: Any, wait: Callable[[], None]) -> None:
        self._module, self._wait = module, wait

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._module, name)

        def call(*args: Any) -> Any:
            result = function(*args)
            self._wait()
            return result

        return call


def pinned(size: int) -> np.ndarray:
    return torch.empty(max(size, 1), dtype=torch.uint8, pin_memory=True).numpy()[:size]


def run_cases(
    module: Any, wait: Callable[[], None], allocate: Callable[[int], np.ndarray]
) -> dict[str, float]:
    """All cases of tests/cuda_emulation on this module; the worst errors by name."""
    before = buffers.allocate
    buffers.allocate = allocate
    try:
        for name, case in all_cases.CASES.items():
            case(Synchronized(module, wait), np.random.default_rng(17))
            print(f"{name}: right")
    finally:
        buffers.allocate = before
    return cases.WORST


def run_triton() -> dict[str, float]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "ops" / "triton" / "interpret.py")],
        env=environment | {"CHECK_DEVICE": "cuda"}, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode != 0:
        refuse(f"a Triton kernel is wrong on this GPU:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def seconds(call: Callable[[], object], rounds: int = 20) -> float:
    """The median of device times, after warm-up."""
    for _ in range(3):
        call()
    times = []
    for _ in range(rounds):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e-3)
    return statistics.median(times)


def timings() -> list[tuple[str, float, float]]:
    """(call, ours, eager) in seconds."""
    from semobridge_ext.ops.triton.project_normalize import launch_project_normalize_fwd
    from semobridge_ext.ops.triton.support_logits import launch_support_logits_fwd

    def unit(rows: int, dtype: torch.dtype) -> Tensor:
        return torch.nn.functional.normalize(torch.randn(rows, 512, device="cuda"), dim=1).to(dtype)

    found = []
    w = torch.linalg.qr(torch.randn(512, 512, device="cuda"))[0].contiguous()
    for n, dtype in ((1, torch.float32), (65536, torch.bfloat16)):
        f, m = unit(n, dtype), w.to(dtype)
        if n == 1:
            ours = native_projection(f, m)
        else:
            ours = lambda f=f, m=m: launch_project_normalize_fwd(f, m, None, 1.0, True)  # noqa: E731
        eager = seconds(lambda f=f, m=m: reference.bridge(f, m, inverse=m))
        found.append((f"bridge, N = {n}, D = 512, {dtype}", seconds(ours), eager))
    q, k = unit(1024, torch.float16), unit(128_000, torch.float16)
    labels = torch.arange(1000, device="cuda").repeat_interleave(128)
    offsets = torch.arange(0, 128_001, 128, device="cuda")
    found.append((
        "support_logits, 1024 × 128000, C = 1000, D = 512, float16",
        seconds(lambda: launch_support_logits_fwd(q, k, None, offsets, 5.5, None)),
        seconds(lambda: reference.support_logits(q, k, labels, 1000, beta=5.5)),
    ))  # fmt: skip
    return found


def native_projection(x: Tensor, matrix: Tensor) -> Callable[[], None]:
    from semobridge_ext.ops.cuda_views import place, row_view, view

    native, transposed = _backend._C, matrix.T.contiguous()
    out, norms = torch.empty_like(x), torch.empty(len(x), device=x.device)
    raw = torch.empty(x.shape, device=x.device)
    tickets = torch.zeros(native.project_tickets(len(x)), dtype=torch.int32, device=x.device)

    def call() -> None:
        native.project_cuda(
            view(x), view(transposed), row_view(None), True, 1.0, view(out), norms.data_ptr(),
            raw.data_ptr(), tickets.data_ptr(), *place(x),
        )  # fmt: skip

    return call


def report(errors: dict[str, float], times: list[tuple[str, float, float]]) -> str:
    lines = [f"Measured on {torch.cuda.get_device_name()}, PyTorch {torch.__version__}.", ""]
    lines += ["| call | ours | eager | ratio |", "|---|---|---|---|"]
    lines += [f"| {name} | {a * 1e6:.1f} µs | {b * 1e6:.1f} µs | {a / b:.3g} |" for name, a, b in times]
    lines += ["", "| kernel | worst error against float64 |", "|---|---|"]
    lines += [f"| {name} | {error:.1e} |" for name, error in errors.items()]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="Markdown file")
    options = parser.parse_args(argv)
    if not torch.cuda.is_available():
        refuse("no GPU that PyTorch can use; run it on a machine that has one")
    if not _backend.HAS_CUDA:
        refuse("the native module holds no CUDA kernels; SEMOBRIDGE_CUDA=on pip install --editable .")
    print(sb.build_info()["cuda"])
    errors = run_cases(_backend._C, torch.cuda.synchronize, pinned)
    text = report(errors | {f"Triton {k}": v for k, v in run_triton().items()}, timings())
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main(sys.argv[1:])

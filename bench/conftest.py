"""What every bench file shares: check first, then time, and write down what the figure stands on.

`pytest bench --benchmark-json=results.json` then `python bench/report.py results.json`.
"""

from __future__ import annotations

import math
import os
import statistics
import timeit
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import semobridge_ext as sb

SECONDS = 1.5  # aim for one member, after warm-up
ROUND = 1e-3  # a round shorter than this is all clock
ROUNDS = (11, 400)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("python_files", "bench_*.py")


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info.pop("node", None)  # a host's name says nothing and would be published
    info = sb.build_info()
    info["openmp"] = [os.path.basename(path) for path in info["openmp"]]  # nor does a folder's
    machine_info["semobridge_ext"] = info


def row_error(got: Tensor, oracle: Tensor, rows: int = 4096) -> float:
    """Largest ‖got − oracle‖ / ‖oracle‖ over rows; the oracle is float64."""
    assert oracle.dtype is torch.float64 and got.shape == oracle.shape
    worst = 0.0
    for ours, true in zip(got.split(rows), oracle.split(rows), strict=True):
        errors = (ours.double() - true).norm(dim=1) / true.norm(dim=1)
        worst = max(worst, float(errors.max()))
        assert not math.isnan(float(errors.sum())), "not a number in the result"
    return worst


def peak_bytes(function: Callable[[], Any]) -> int | None:
    """Resident bytes that one call adds at its peak; None where the kernel cannot tell."""

    def read(field: str) -> int:
        with open("/proc/self/status", encoding="ascii") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field))

    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as reset:
            reset.write("5")  # sets the high-water mark back to now
        before = read("VmRSS")
        function()
        return max(0, read("VmHWM") - before)
    except OSError:
        return None


@pytest.fixture
def timed(benchmark: Any) -> Callable[..., None]:
    """`timed(function, group=, member=, oracle=, bound=, flops=, bytes_moved=)`: checks, then times.

    group is op/shape/dtype; `eager` and `mm` are the members that the report divides by. The result is
    held against the float64 oracle before any time is taken.
    """

    def run(
        function: Callable[[], Tensor],
        *,
        group: str,
        member: str,
        oracle: Tensor,  # [N, D] float64
        bound: float,
        flops: float,
        bytes_moved: float,
        **extra: Any,
    ) -> None:
        with torch.inference_mode():
            error = row_error(function(), oracle)
            assert error <= bound, f"{group} {member}: error {error:.2e} against float64 is above {bound:.0e}"
            peak = peak_bytes(function)
            took = statistics.median(timeit.repeat(function, number=1, repeat=7))
        iterations = max(1, math.ceil(ROUND / took))
        rounds = int(min(max(SECONDS / (took * iterations), ROUNDS[0]), ROUNDS[1]))
        benchmark.group, benchmark.name = group, f"{group} {member}"
        benchmark.extra_info.update(
            member=member, error=error, flops=flops, bytes=bytes_moved, peak_bytes=peak,
            isa=sb.build_info()["isa"], threads=torch.get_num_threads(), torch=torch.__version__, **extra,
        )  # fmt: skip
        with torch.inference_mode():
            benchmark.pedantic(function, rounds=rounds, iterations=iterations, warmup_rounds=3)

    return run

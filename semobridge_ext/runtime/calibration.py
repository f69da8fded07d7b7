"""Measures on one device which backend is fastest, call by call and size by size, for `auto` to take.

A backend is a candidate only where its result agrees with the plain PyTorch program's; sizes in between
take the choice of the next smaller measured one.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from semobridge_ext.runtime import backend as _backend
from semobridge_ext.runtime.choice import Kernels
from semobridge_ext.runtime.rules import Steps
from semobridge_ext.runtime.self_check import TOLERANCE
from semobridge_ext.runtime.thresholds import key

GAIN = 0.95  # of the best time so far: a backend must be worth the change
BACKENDS = ("eager", "native", "triton")


class Case(NamedTuple):
    """One call of an operator at one size."""

    kernels: Kernels  # of the operator
    args: tuple[Any, ...]  # of the call, as its choice sees them
    call: Callable[[], Tensor]

    @property
    def op(self) -> str:
        return self.kernels.op

    @property
    def dtype(self) -> torch.dtype:
        return self.args[0].dtype

    @property
    def size(self) -> int:
        """What the call's choice goes by."""
        return self.kernels.size(*self.args)


class Measured(NamedTuple):
    case: Case
    seconds: dict[str, float]  # by backend; wrong and missing ones are left out
    refused: dict[str, str]  # by backend, why
    choice: str


def seconds(call: Callable[[], Any], device: torch.device, rounds: int = 15) -> float:
    """The median time of a call that is awaited, after warm-up."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    for _ in range(3):
        call()
    times = []
    for _ in range(rounds):
        wait()
        begin = time.perf_counter()
        call()
        wait()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def measure(
    case: Case, device: torch.device, clock: Callable[[Callable[[], Any], torch.device], float] = seconds
) -> Measured:
    """Times a case on every backend that serves it and agrees with plain PyTorch."""
    times: dict[str, float] = {}
    refused: dict[str, str] = {}
    want = None
    for backend in BACKENDS:
        with _backend.backend(backend), torch.no_grad():
            try:
                got = case.call().float()
            except Exception as error:  # Triton's OutOfResources and PTXASError are no RuntimeErrors
                if want is None:
                    raise  # plain PyTorch itself fails: nothing can be compared
                known = isinstance(error, (NotImplementedError, RuntimeError))
                told = " ".join(str(error).split())
                refused[backend] = told if known else f"{type(error).__name__}: {told}"
                continue
            if want is None:
                want = got
            error_of = float((got - want).abs().max() / want.abs().max())
            if not error_of <= TOLERANCE[case.dtype]:  # NaN is no agreement
                refused[backend] = f"differs from plain PyTorch by {error_of:.1e} of the largest value"
                continue
            times[backend] = clock(case.call, device)
    choice = "eager"
    for backend, took in times.items():
        if took < GAIN * times[choice]:
            choice = backend
    return Measured(case, times, refused, choice)


def thresholds(found: Sequence[Measured]) -> dict[str, Steps]:
    """The choices by call and dtype, neighbours of one choice joined."""
    calls: dict[str, Steps] = {}
    for m in sorted(found, key=lambda m: m.case.size):
        steps = calls.setdefault(key(m.case.op, m.case.dtype), [])
        if not steps or steps[-1][1] != m.choice:
            steps.append((m.case.size, m.choice))
    return calls

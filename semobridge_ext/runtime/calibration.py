"""Measures on one device which backend is fastest, call by call and size by size, for `auto` to take.

A backend is a candidate only where its result agrees with the plain PyTorch program's; sizes in between
take the choice of the next smaller measured one.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from semobridge_ext._ops.project_normalize.op import project_normalize
from semobridge_ext._ops.support_logits.op import support_logits
from semobridge_ext._ops.topk.op import topk
from semobridge_ext.bridging.closed_form import Bridge
from semobridge_ext.fewshot import SeMoBridgeClassifier
from semobridge_ext.runtime import backend as _backend
from semobridge_ext.runtime.thresholds import Steps, key

WIDTH, CLASSES = 512, 100
TOLERANCE = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 6e-2}  # of the largest value
GAIN = 0.95  # of the best time so far: a backend must be worth the change
BACKENDS = ("eager", "native", "triton")


class Case(NamedTuple):
    """One call at one size. `size` is what the call's choice goes by."""

    function: str
    dtype: torch.dtype
    size: int
    call: Callable[[], Tensor]


class Measured(NamedTuple):
    case: Case
    seconds: dict[str, float]  # by backend; wrong and missing ones are left out
    refused: dict[str, str]  # by backend, why
    choice: str


def cases(device: torch.device, sizes: Sequence[int] = (1, 32, 256, 4096, 65536)) -> Iterator[Case]:
    """The calls that have kernels, on inputs like those of users; made one after another."""
    generator = torch.Generator().manual_seed(0)

    def unit(rows: int, dtype: torch.dtype) -> Tensor:
        x = torch.randn(rows, WIDTH, generator=generator)
        return torch.nn.functional.normalize(x, dim=1).to(device, dtype)

    matrix = torch.randn(WIDTH, WIDTH, generator=generator) * WIDTH**-0.5
    bridge = Bridge(matrix).to(device)
    labels = torch.arange(CLASSES).repeat_interleave(4)
    shots = unit(len(labels), torch.float32).cpu()
    classifier = SeMoBridgeClassifier(Bridge(matrix), unit(CLASSES, torch.float32).cpu()).fit(shots, labels)
    for dtype in TOLERANCE:
        right = matrix.to(device, dtype)
        for n in sizes:
            x = unit(n, dtype)
            yield Case("bridge", dtype, n, partial(bridge, x))
            yield Case("project_normalize", dtype, n, partial(project_normalize, x, right))
            yield Case("predict", dtype, n, partial(classifier.decision_function, x))
        for n in sizes:
            queries, gallery = unit(256, dtype), unit(max(n, 16), dtype)
            own = (torch.arange(len(gallery)) % CLASSES).to(device)
            size = 256 * len(gallery)
            logits = partial(support_logits, queries, gallery, own, CLASSES, beta=5.5)
            yield Case("topk", dtype, size, partial(_best_scores, queries, gallery))
            yield Case("support_logits", dtype, size, logits)


def _best_scores(queries: Tensor, gallery: Tensor) -> Tensor:
    return topk(queries, gallery, 10).scores


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
            except (NotImplementedError, RuntimeError) as error:
                if want is None:
                    raise  # plain PyTorch itself fails: nothing can be compared
                refused[backend] = " ".join(str(error).split())
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
        steps = calls.setdefault(key(m.case.function, m.case.dtype), [])
        if not steps or steps[-1][1] != m.choice:
            steps.append((m.case.size, m.choice))
    return calls

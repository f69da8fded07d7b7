"""One step of a loop, captured in a CUDA graph and replayed; on other devices simply called.

A graph repeats launches with the very addresses and host numbers that it was captured with. So a step that is
captured reads what changes from tensors that stay where they are (a step count, tables of rates), writes
into such tensors, and neither allocates nor looks at a result.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

Step = Callable[[], None]
WARM_UP = 2  # steps: libraries pick their kernels and Triton compiles before the capture


_capturing = threading.Lock()  # PyTorch allows one capture per process


@lru_cache(maxsize=64)
def _side_stream(device: torch.device) -> Any:
    """One per device, for warm-up and capture: libraries keep a workspace per stream, which a capture may
    not make, and PyTorch's own default for captures lies on whichever device captured first."""
    return torch.cuda.Stream(device)


@contextmanager
def _aside(device: torch.device) -> Iterator[Any]:
    """On the side stream, in order with the current one, which comes back whatever happens."""
    with torch.cuda.device(device):
        stream, current = _side_stream(device), torch.cuda.current_stream()
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            yield stream
        current.wait_stream(stream)


def capture_cuda(step: Step, device: torch.device) -> Step:
    """The launches of one step as a graph; the step is recorded, not run."""
    graph = torch.cuda.CUDAGraph()
    # A capture that fails leaves PyTorch on its stream: the outer block brings it back.
    with (
        _capturing,
        _aside(device) as stream,
        torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"),
    ):
        step()
    return graph.replay


def repeatable(
    step: Step,
    state: Sequence[Tensor],
    device: torch.device,
    *,
    capture: Callable[[Step, torch.device], Step] | None = None,
) -> Step:
    """A callable that takes one step, on a CUDA device by replaying a graph of it.

    Args:
        step: takes one step in place; no argument, no result.
        state: every tensor that a step changes and that the next one reads; they end up as they were.
        device: of the tensors.
        capture: turns a step into its replay; None: `capture_cuda` on CUDA devices, nothing elsewhere.

    Warns:
        RuntimeWarning: the capture failed; the steps are then launched one by one.
    """
    if capture is None:
        if device.type != "cuda" or torch.cuda.is_current_stream_capturing():
            return step
        device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
        capture = capture_cuda
    before = [t.clone() for t in state]
    with _aside(device) if device.type == "cuda" else nullcontext():
        for _ in range(WARM_UP):
            step()
    try:
        replay = capture(step, device)
    except RuntimeError as error:
        warnings.warn(
            f"the steps run without a CUDA graph, launch by launch: {error}; PyTorch's allocator may keep "
            "memory of the failed capture",
            RuntimeWarning,
            stacklevel=2,
        )
        replay = step
    for t, old in zip(state, before, strict=True):
        t.copy_(old)
    return replay

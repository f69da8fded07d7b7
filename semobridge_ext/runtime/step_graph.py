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
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

Step = Callable[[], None]
WARM_UP = 2  # steps: libraries pick their kernels and Triton compiles before the capture
_POOL = 32  # streams of a device that PyTorch hands out in turn (c10/cuda/CUDAStream.cpp)


_capturing = threading.Lock()  # PyTorch allows one capture per process


class GraphStream:
    """A stream for one graph: warm-up, capture, and nothing else while the graph lives.

    cuBLAS keeps a workspace for each stream, and a graph names the one of the stream that it was captured on.
    Two graphs of one stream would write into one workspace when they are replayed side by side, and PyTorch
    may free it with the first of them (pytorch/pytorch#193402).
    """

    def __init__(self, stream: Any) -> None:
        self.stream = stream


_taken: WeakValueDictionary[tuple[int, int], GraphStream] = WeakValueDictionary()  # by device and handle
_taking = threading.Lock()


def own_stream(device: torch.device) -> GraphStream:
    """A stream of the device that no living graph has; RuntimeError where there is none.

    PyTorch's streams come from a pool in turn, so that a new one may be another graph's.
    """
    with _taking:
        for _ in range(_POOL):
            own = GraphStream(torch.cuda.Stream(device))
            if _taken.setdefault((device.index, own.stream.cuda_stream), own) is own:
                return own
    raise RuntimeError(f"all {_POOL} streams of {device} belong to graphs that are still in use")


class Replay:
    """A captured step; holds the graph and its stream."""

    def __init__(self, graph: Any, own: GraphStream) -> None:
        self._graph, self._own = graph, own

    def __call__(self) -> None:
        self._graph.replay()


@contextmanager
def _aside(device: torch.device, stream: Any) -> Iterator[None]:
    """On that stream, in order with the current one, which comes back whatever happens.

    And waits for it whatever happens: what a failing block launched still writes into memory that its caller
    is about to give back.
    """
    with torch.cuda.device(device):
        current = torch.cuda.current_stream()
        stream.wait_stream(current)
        try:
            with torch.cuda.stream(stream):
                yield
        finally:
            current.wait_stream(stream)


def capture_cuda(step: Step, device: torch.device, own: GraphStream) -> Step:
    """The launches of one step as a graph; the step is recorded, not run."""
    graph = torch.cuda.CUDAGraph()
    # A capture that fails leaves PyTorch on its stream: the outer block brings it back.
    with (
        _capturing,
        _aside(device, own.stream),
        torch.cuda.graph(graph, stream=own.stream, capture_error_mode="thread_local"),
    ):
        step()
    return Replay(graph, own)


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
        RuntimeWarning: the capture failed, or 32 graphs of the device live already; the steps are then
            launched one by one.
    """
    warm_up: Callable[[], Any] = nullcontext
    if capture is None:
        if device.type != "cuda" or torch.cuda.is_current_stream_capturing():
            return step
        device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
        try:
            own = own_stream(device)
        except RuntimeError as error:
            _warn(error)
            return step
        capture, warm_up = partial(capture_cuda, own=own), partial(_aside, device, own.stream)
    before = [t.clone() for t in state]
    with warm_up():
        for _ in range(WARM_UP):
            step()
    try:
        replay = capture(step, device)
    except RuntimeError as error:
        _warn(f"{error}; PyTorch's allocator may keep memory of the failed capture")
        replay = step
    for t, old in zip(state, before, strict=True):
        t.copy_(old)
    return replay


def _warn(why: object) -> None:
    said = f"the steps run without a CUDA graph, launch by launch: {why}"
    warnings.warn(said, RuntimeWarning, stacklevel=3)

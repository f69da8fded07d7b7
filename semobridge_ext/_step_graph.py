"""One step of a loop, captured in a CUDA graph and replayed; on other devices simply called.

A graph repeats launches with the very addresses and host numbers that it was captured with. So a step that is
captured reads what changes from tensors that stay where they are (a step count, tables of rates), writes
into such tensors, and neither allocates nor looks at a result.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Step = Callable[[], None]
WARM_UP = 2  # steps: libraries pick their kernels and Triton compiles before the capture


def capture_cuda(step: Step, device: torch.device) -> Step:
    """The launches of one step as a graph; the step is recorded, not run."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device), torch.cuda.graph(graph, capture_error_mode="thread_local"):
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
        capture = capture_cuda
    before = [t.clone() for t in state]
    if device.type == "cuda":
        # Not the default stream: libraries keep a workspace per stream, and a capture may not make one.
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                step()
        torch.cuda.current_stream(device).wait_stream(stream)
    else:
        for _ in range(WARM_UP):
            step()
    try:
        replay = capture(step, device)
    except RuntimeError as error:
        warnings.warn(
            f"the steps run without a CUDA graph, launch by launch: {error}", RuntimeWarning, stacklevel=2
        )
        replay = step
    for t, old in zip(state, before, strict=True):
        t.copy_(old)
    return replay

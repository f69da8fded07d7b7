"""The loop of an inversion: chunks of samples, slices of steps, early stopping, Ctrl-C."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from semobridge_ext._engines.tower_descent.engine import TowerEngine
from semobridge_ext.inversion.settings import Settings

CHECK_EVERY = 10  # steps between two looks at the plateau
_SLICE_SECONDS = 0.2  # steps run this long before Python looks at Ctrl-C and the progress bar


@dataclass
class Chunk:
    """Some samples, finished or as far as they came."""

    tokens: Tensor  # [S, R, T]
    features: Tensor  # [S, D]
    losses: Tensor  # [steps, S], NaN where no step was taken
    recorded: Tensor  # [len(record_steps), S, D]
    steps_done: Tensor  # [S]

    def cpu(self) -> Chunk:
        return Chunk(**{name: value.cpu() for name, value in vars(self).items()})


class Interrupt:
    """Set by the first Ctrl-C; the second one raises KeyboardInterrupt as usual."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self, _signal: int, _frame: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


@contextmanager
def catch_interrupt() -> Iterator[Interrupt]:
    """Turns Ctrl-C into a flag, so that finished work can be returned; main thread only."""
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, before)


# Start values and targets of each chunk, 1/B of the mean → the chunks, in their order; fewer after Ctrl-C.
Elsewhere = Callable[[Iterator[tuple[Tensor, Tensor]], float, Interrupt], Generator[Chunk, None, None]]


def _improve(
    losses: Tensor,  # [steps, S]
    first: int,
    best: Tensor,  # [S], updated
    best_step: Tensor,  # [S], updated
    min_delta: float,
) -> None:
    for i, row in enumerate(losses):
        better = row < best - min_delta
        best[better] = row[better]
        best_step[better] = first + i


def _await(device: torch.device) -> None:
    """A GPU's launches return at once, but the clock sets the length of a slice: wait once a slice."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def run_chunk(
    engine: TowerEngine,
    tokens: Tensor,  # [S, R, T], consumed
    targets: Tensor,  # [S, D] unit rows
    settings: Settings,
    grad_scale: float,
    interrupt: Interrupt,
    advance: Callable[[int, Tensor], None],  # (sample-steps, last losses)
) -> Chunk:
    """All steps of some samples, or as many as were taken when Ctrl-C came."""
    samples, records = len(tokens), len(settings.record_steps)
    losses = tokens.new_full((settings.steps, samples), float("nan"))
    recorded = tokens.new_full((records, samples, engine.dim), float("nan"))
    done = torch.zeros(samples, dtype=torch.long)
    active = torch.arange(samples, device=tokens.device)
    best = tokens.new_full((samples,), float("inf"))
    best_step = torch.zeros(samples, dtype=torch.long, device=tokens.device)
    moments = torch.zeros_like(tokens), torch.zeros_like(tokens)
    now, f = (tokens.clone(), *moments), targets.contiguous()
    step, stride = 0, 1
    while step < settings.steps and len(active) and not interrupt.asked:
        end = min(settings.steps, step + (CHECK_EVERY if settings.patience is not None else stride))
        part = recorded.new_empty(records, len(active), engine.dim)
        start = time.perf_counter()
        slice_losses = engine.descend(
            now[0], now[1], now[2], f, step, end, grad_scale=grad_scale, lr=settings.lr,
            weight_decay=settings.weight_decay, record_steps=settings.record_steps, recorded=part,
        )  # fmt: skip
        _await(tokens.device)
        seconds = (time.perf_counter() - start) / (end - step)
        stride = max(1, min(64, int(_SLICE_SECONDS / max(seconds, 1e-6))))
        losses[step:end, active] = slice_losses
        for i, recorded_step in enumerate(settings.record_steps):
            if step <= recorded_step < end:
                recorded[i, active] = part[i]
        tokens[active], done[active.cpu()] = now[0], end
        advance((end - step) * len(active), slice_losses[-1])
        if settings.patience is not None:
            at_best, at_step = best[active], best_step[active]
            _improve(slice_losses, step, at_best, at_step, settings.min_delta)
            best[active], best_step[active] = at_best, at_step
            # A NaN loss never improves, so a NaN row leaves as well.
            going = end - at_step < settings.patience
            if not bool(going.all()):
                active = active[going]
                now, f = (now[0][going], now[1][going], now[2][going]), f[going]
        step = end
    features = engine.features(tokens, unit=True)
    for i, recorded_step in enumerate(settings.record_steps):
        over = (done <= recorded_step).to(tokens.device)  # at the last step, or finished before it
        if not interrupt.asked or recorded_step == 0:
            recorded[i, over] = features[over]
    for s in torch.nonzero((done > 0) & (done < settings.steps)).flatten().tolist():
        if not interrupt.asked:
            losses[done[s] :, s] = losses[done[s] - 1, s]
    return Chunk(tokens, features, losses, recorded, done)

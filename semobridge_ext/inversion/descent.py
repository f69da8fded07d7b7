"""The loop of inversion.py: chunks of samples, slices of steps, early stopping, Ctrl-C."""

from __future__ import annotations

import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from semobridge_ext._engines.tower_descent.cpu import FrozenTower, PackedTower
from semobridge_ext._engines.tower_descent.cuda import KernelPieces
from semobridge_ext._engines.tower_descent.reference import tower_features
from semobridge_ext._engines.tower_descent.spec import LearnedRows, Tower
from semobridge_ext._engines.tower_descent.step import LaunchedTower
from semobridge_ext._engines.tower_descent.torch import TorchPieces
from semobridge_ext._engines.tower_descent.weights import LaunchedWeights
from semobridge_ext.runtime.backend import requested
from semobridge_ext.runtime.choice import resolve

CHECK_EVERY = 10  # steps between two looks at the plateau
_SLICE_SECONDS = 0.2  # steps run this long before Python looks at Ctrl-C and the progress bar


@dataclass(frozen=True)
class Settings:
    steps: int
    lr: float
    weight_decay: float
    record_steps: tuple[int, ...]
    patience: int | None
    min_delta: float


@dataclass
class Chunk:
    """Some samples on their way."""

    tokens: Tensor  # [S, R, T]
    features: Tensor  # [S, D]
    losses: Tensor  # [steps, S], NaN where no step was taken
    recorded: Tensor  # [len(record_steps), S, D]
    steps_done: Tensor  # [S]

    def cpu(self) -> Chunk:
        return Chunk(**{name: value.cpu() for name, value in vars(self).items()})


class EagerTower:
    """FrozenTower's verbs in plain PyTorch with autograd, on any device."""

    def __init__(self, tower: Tower, rows: LearnedRows) -> None:
        self.tower, self.rows = tower, rows
        self.compute = torch.float64 if tower.dtype == torch.float64 else torch.float32
        self.vectors, self.width, self.dim = rows.vectors, tower.width, tower.features

    def features(self, tokens: Tensor, *, unit: bool = False) -> Tensor:
        with torch.no_grad():
            out = tower_features(self.tower, self.rows, tokens)
        return torch.nn.functional.normalize(out, dim=-1) if unit else out

    def descend(
        self,
        tokens: Tensor,
        exp_avg: Tensor,
        exp_avg_sq: Tensor,
        targets: Tensor,
        step_begin: int,
        step_end: int,
        *,
        grad_scale: float,
        lr: float,
        weight_decay: float,
        record_steps: tuple[int, ...] = (),
        recorded: Tensor | None = None,
    ) -> Tensor:
        losses = tokens.new_empty(step_end - step_begin, len(tokens))
        for step in range(step_begin, step_end):
            v = tokens.detach().requires_grad_()
            with torch.enable_grad():
                features = tower_features(self.tower, self.rows, v)
                loss = 1 - torch.nn.functional.cosine_similarity(features, targets, dim=-1)
                (g,) = torch.autograd.grad(loss.sum() * grad_scale, v)
            losses[step - step_begin] = loss.detach()
            if step in record_steps and recorded is not None:
                unit = torch.nn.functional.normalize(features.detach(), dim=-1)
                recorded[record_steps.index(step)] = unit
            exp_avg.lerp_(g, 1 - 0.9)
            exp_avg_sq.mul_(0.999).addcmul_(g, g, value=1 - 0.999)
            root = exp_avg_sq.sqrt().div_((1 - 0.999 ** (step + 1)) ** 0.5).add_(1e-8)
            tokens.mul_(1 - lr * weight_decay).addcdiv_(exp_avg, root, value=-lr / (1 - 0.9 ** (step + 1)))
        return losses


Engine = FrozenTower | LaunchedTower | EagerTower
Weights = PackedTower | LaunchedWeights

_packed: weakref.WeakKeyDictionary[Any, dict[str, tuple[Any, Weights]]] = weakref.WeakKeyDictionary()


def _state(model: Any) -> tuple[Any, ...]:
    """Changes when weights are replaced or trained (not when they are written through ``.data``)."""
    return tuple((p.data_ptr(), 0 if p.is_inference() else p._version) for p in model.parameters())


def engine_kind(function: str, device: torch.device, dtype: torch.dtype) -> str:
    """``core``: the loop in C++, on the CPU. ``launches`` and ``kernels``: the step as launches on a CUDA
    device, between its products PyTorch or csrc/cuda. ``eager``: autograd over the whole context."""
    name = resolve(function, device, cuda=dtype != torch.float64)
    if device.type == "cpu":
        return "core" if name == "native" else "eager"
    if name == "native":
        return "kernels"
    return "launches" if device.type == "cuda" and requested() != "eager" else "eager"


def make_engine(
    function: str, model: Any, tower: Tower, rows: LearnedRows, weights: torch.dtype | None
) -> Engine:
    """The engine for the tower's device; its weights are kept for as long as the model lives."""
    chosen = engine_kind(function, tower.device, tower.dtype)
    if chosen == "eager":
        return EagerTower(tower, rows)
    make: type[Weights] = PackedTower if chosen == "core" else LaunchedWeights
    kind, state = f"{function} {weights} {make.__name__}", _state(model)
    kept = _packed.setdefault(model, {})
    if kind not in kept or kept[kind][0] != state:
        kept.clear()  # one packed tower a model: they are as large as the model
        kept[kind] = (state, make(tower, weights))
    found = kept[kind][1]
    if isinstance(found, PackedTower):
        return FrozenTower(found, rows)
    return LaunchedTower(found, rows, pieces=KernelPieces if chosen == "kernels" else TorchPieces)


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
    """Once a slice: a GPU's launches return at once, and the length of a slice is set by the clock."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def run_chunk(
    engine: Engine,
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

"""Which engine runs a tower descent, and the weights that engines of one model share."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from semobridge_ext import _errors
from semobridge_ext._engines.tower_descent import check
from semobridge_ext._engines.tower_descent.cpu import FrozenTower, PackedTower
from semobridge_ext._engines.tower_descent.cuda import CudaTowerPieces
from semobridge_ext._engines.tower_descent.eager import EagerTower
from semobridge_ext._engines.tower_descent.engine import TowerEngine
from semobridge_ext._engines.tower_descent.model import ModelTower, OwnRows, OwnTower
from semobridge_ext._engines.tower_descent.plans import plan_of
from semobridge_ext._engines.tower_descent.spec import LearnedRows, Tower
from semobridge_ext._engines.tower_descent.step import LaunchedTower
from semobridge_ext._engines.tower_descent.torch import TorchTowerPieces
from semobridge_ext._engines.tower_descent.weights import LaunchedWeights
from semobridge_ext.runtime.backend import _C, requested
from semobridge_ext.runtime.choice import resolve

Weights = PackedTower | LaunchedWeights

_shared: weakref.WeakKeyDictionary[Any, dict[str, tuple[Any, Weights]]] = weakref.WeakKeyDictionary()


def choose(function: str, device: torch.device, dtype: torch.dtype, stored: torch.dtype | None = None) -> str:
    """The engine by the file that holds it.

    ``cpu``: the loop in the core. ``torch`` and ``cuda``: the step as launches on a device, between its
    products PyTorch or csrc's kernels. ``eager``: autograd over the whole context. ``function`` is named in
    messages, ``stored`` the dtype of products and activations, by which a GPU's kernels are chosen.
    """
    work = check.OP, stored or dtype, 1
    name = resolve(function, device, cuda=dtype != torch.float64, work=work)
    if device.type == "cpu":
        return "cpu" if name == "native" else "eager"
    if name == "native":
        return "cuda"
    return "torch" if device.type == "cuda" and requested() != "eager" else "eager"


def _tensors(part: Any) -> Iterator[Tensor]:
    """Those of a tower's specification, in its order."""
    if isinstance(part, Tensor):
        yield (
            part.mT if part.dim() == 2 and part.mT.is_contiguous() else part
        )  # a weight is a transposed view
    elif isinstance(part, tuple):
        for one in part:
            yield from _tensors(one)
    elif is_dataclass(part):
        for field in fields(part):
            yield from _tensors(getattr(part, field.name))


def fingerprint(tower: Tower | OwnTower) -> tuple[tuple[Any, ...], ...]:
    """Changes with every weight, however it was written: versions miss what goes through ``.data``.

    Two sums of words for each tensor, by row and by column, with their places: one pass over the memory, a
    small part of what packing or one step costs.
    """
    found = []
    for t in _tensors(tower):
        words = _words(t.detach())
        rows = words.sum(1) if len(words) else words.new_zeros(0)
        columns = words.sum(0)
        places = torch.arange(1, max(len(rows), len(columns)) + 1, device=words.device)
        sums = (rows * places[: len(rows)]).sum(), (columns * places[: len(columns)]).sum()
        found.append((t.dtype, tuple(t.shape), str(t.device), *(int(s) for s in sums)))
    return tuple(found)


def _words(t: Tensor) -> Tensor:  # -> [n, 2048] int64
    """The tensor's bits, the end filled with zeros; PyTorch adds int64 at the speed of memory, int32 not."""
    data = t.contiguous().reshape(-1).view(torch.uint8)
    if short := -len(data) % 16384:
        data = torch.nn.functional.pad(data, (0, short))
    return data.view(torch.int64).view(-1, 2048)


def check_compute(function: str, compute: torch.dtype | None, chosen: str, dtype: torch.dtype) -> None:
    """bfloat16 products are a device's, or the CPU core's where it has them; sums are float32."""
    if compute is None:
        return
    if compute is not torch.bfloat16:
        remedy = "leave it out for products in the tower's own precision"
        raise TypeError(_errors.message(function, "compute", "be torch.bfloat16 or None", compute, remedy))
    if chosen == "eager":
        got, remedy = "an engine of 'eager'", "leave it out"
    elif dtype is torch.float64:
        got, remedy = "a float64 tower", "leave it out, or convert the model with .float()"
    elif chosen == "cpu" and not _C.active_bf16():
        got, remedy = f"the instruction set {_C.active_isa()}", "leave it out: this needs AVX-512-BF16"
    else:
        return
    contract = "be torch.bfloat16 only where there are such products"
    raise ValueError(_errors.message(function, "compute", contract, got, remedy))


def _check_own(
    function: str, weights: torch.dtype | None, compute: torch.dtype | None, tower: OwnTower
) -> None:
    """A model multiplies by its own weights."""
    for name, value in (("weights", weights), ("compute", compute)):
        if value is not None:
            remedy = "leave it out, or convert the model"
            contract = f"be None for {tower.name}"
            raise ValueError(_errors.message(function, name, contract, value, remedy))


def make_engine(
    function: str,
    model: Any,
    tower: Tower | OwnTower,
    rows: LearnedRows | OwnRows,
    weights: torch.dtype | None,
    compute: torch.dtype | None = None,
    run: Callable[[Tensor], Tensor] | None = None,
) -> TowerEngine:
    """The engine for the tower's device; its weights are kept for as long as the model lives.

    ``run``, the model's own pass, comes with an OwnTower.
    """
    if isinstance(tower, OwnTower):
        assert isinstance(rows, OwnRows) and run is not None
        _check_own(function, weights, compute, tower)
        return ModelTower(tower, rows, run)
    assert isinstance(rows, LearnedRows)
    chosen = choose(function, tower.device, tower.dtype, weights or tower.compute)
    check_compute(function, compute, chosen, tower.compute)
    if chosen == "eager":
        return EagerTower(tower, rows)
    make: type[Weights] = PackedTower if chosen == "cpu" else LaunchedWeights
    kind, digest = f"{function} {weights} {compute} {make.__name__}", fingerprint(tower)
    kept = _shared.setdefault(model, {})
    if kind not in kept or kept[kind][0] != digest:
        kept.clear()  # one set of weights a model: they are as large as the model, so none is copied either
        if compute is not None and chosen == "cpu":
            packed: Weights = PackedTower(tower, bf16_products=True)
        else:  # a device's products of bfloat16 are those of bfloat16 weights
            packed = make(tower, weights if compute is None else compute)
        kept[kind] = (digest, packed)
    found = kept[kind][1]
    if isinstance(found, PackedTower):
        return FrozenTower(found, rows)
    if chosen == "cuda":
        return LaunchedTower(found, rows, pieces=CudaTowerPieces, plans=plan_of)
    return LaunchedTower(found, rows, pieces=TorchTowerPieces)

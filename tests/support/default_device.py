"""Calls under a default device that holds nothing, and everything that they hand back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import semobridge_ext as sb
from tests.support.assertions import assert_same_scores

N, D, T, C = 12, 192, 192, 4
NAMES = ["arrow", "flag", "house", "star"]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape) + seed))


X, OTHER, TEXT = drawn(N, D), drawn(N, D, seed=1), drawn(C, D)
LABELS = torch.arange(N) % C
WORDS = [NAMES[c] for c in LABELS.tolist()]
PROJECTION, SECOND, CONCEPTS = drawn(T, D), drawn(T, D, seed=1), drawn(20, D, seed=2)
EVERY, EVEN = torch.arange(N), torch.tensor([True, False] * N)
IDENTITY = torch.eye(D)
PAIRS, WEIGHTS, TWO = torch.stack([EVERY, EVERY], dim=1), torch.full((N,), 0.5), torch.arange(2)
IMAGES = drawn(2, 3, 48, 48).clamp(0, 1)


def leaves(value: Any) -> Iterator[Tensor]:
    """Every number in what a call hands back."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, np.ndarray):
        yield torch.from_numpy(value) if value.dtype.kind in "fiub" else torch.zeros(0, device="cpu")
    elif isinstance(value, (bool, int, float)):
        yield torch.tensor([value], dtype=torch.float64, device="cpu")
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from leaves(getattr(value, field.name))
    elif isinstance(value, Mapping):
        for name in value:
            yield from leaves(value[name])
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from leaves(item)


def stored(thing: Any, path: Path) -> Any:
    thing.save(path / f"{type(thing).__name__}.safetensors")
    return type(thing).load(path / f"{type(thing).__name__}.safetensors")


@contextmanager
def default_device(name: str | None) -> Iterator[None]:
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device(None)


def check_door(door: Callable[[Any, Path], Any], clip: Any, backend: str, home: Path) -> None:
    """The same numbers on the CPU, whatever the default device is."""
    found = []
    for device in (None, "meta"):  # whatever strays to the second is lost
        (home / str(device)).mkdir()
        with default_device(device), sb.backend(backend):
            found.append(list(leaves(door(clip, home / str(device)))))
    want, got = found
    assert any(v.isfinite().all() and v.any() for v in want) and len(want) == len(got)
    for a, b in zip(got, want, strict=True):
        assert a.device.type == "cpu" and a.dtype is b.dtype and a.shape == b.shape
    assert_same_scores(
        *(torch.cat([v.detach().double().flatten() for v in values]) for values in (got, want))
    )

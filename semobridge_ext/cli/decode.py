"""Images to batches in worker processes; what cannot be decoded travels on as a reason."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from semobridge_ext.cli import images
from semobridge_ext.cli.sources import Source


class Decoded(NamedTuple):
    """One input: pixels, or why there are none."""

    path: str
    fields: dict[str, str | None]
    pixels: Tensor | None
    reason: str


class Batch(NamedTuple):
    """Consecutive inputs; `pixels` holds those without a reason, in order."""

    inputs: list[Decoded]
    pixels: Tensor | None  # [n, 3, H, W]


def _decode(item: Any, transform: Any, max_pixels: int) -> Decoded:
    try:
        with images.opened(item.read(), max_pixels) as image:
            pixels = transform(image)
        if not isinstance(pixels, torch.Tensor):
            raise TypeError(f"the preprocessing gives a {type(pixels).__name__} in place of a tensor")
        return Decoded(item.path, item.fields(), pixels, "")
    except Exception as error:
        # PIL's plugins raise whatever their parsing meets: one image is never worth the run.
        reason = " ".join(str(error).split()) or type(error).__name__
        return Decoded(item.path, {}, None, f"{type(error).__name__}: {reason}")


class _Stream(IterableDataset):
    """Inputs from `start` on. Worker w of W takes every W-th batch, which keeps the loader's order."""

    def __init__(self, source: Source, transform: Any, start: int, batch: int, max_pixels: int) -> None:
        self.source, self.transform, self.start, self.batch = source, transform, start, batch
        self.max_pixels = max_pixels

    def __iter__(self) -> Iterator[Decoded]:
        info = get_worker_info()
        mine, workers = (info.id, info.num_workers) if info else (0, 1)
        for i, item in enumerate(self.source.items(self.start)):
            if i // self.batch % workers == mine:
                yield _decode(item, self.transform, self.max_pixels)


def _collate(inputs: list[Decoded]) -> Batch:
    pixels = [d.pixels for d in inputs if d.pixels is not None]
    return Batch([d._replace(pixels=None) for d in inputs], torch.stack(pixels) if pixels else None)


def batch_of(items: list[Any], transform: Any, max_pixels: int) -> Batch:
    """What a loader makes of the same inputs, decoded here."""
    return _collate([_decode(item, transform, max_pixels) for item in items])


def batches(
    source: Source,
    transform: Any,
    start: int,
    batch: int,
    workers: int,
    pin: bool,
    max_pixels: int = images.PIXELS,
) -> DataLoader:
    """A loader of `Batch`, in the order of the source, from input number `start` on."""
    stream = _Stream(source, transform, start, batch, max_pixels)
    return DataLoader(
        stream, batch_size=batch, num_workers=workers, collate_fn=_collate, pin_memory=pin,
        prefetch_factor=2 if workers else None,
    )  # fmt: skip

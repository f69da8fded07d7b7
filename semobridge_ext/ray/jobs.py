"""What the commands of `--engine ray` hand to a cluster: the same batches as without, in the same order.

The driver lists the input, writes the shards and keeps the rules of resuming; an actor decodes and encodes a
batch, maps or searches a part of a shard, descends a chunk. Folders and files that are read by path must lie
at the same path on every node; tars are read by the driver.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from semobridge_ext.cli import mappings, models
from semobridge_ext.cli.decode import Decoded, batch_of
from semobridge_ext.cli.listing import Item, given
from semobridge_ext.cli.sources import Source
from semobridge_ext.cli.tables import open_features
from semobridge_ext.inversion.descent import Chunk, Elsewhere, Interrupt
from semobridge_ext.inversion.row_inverter import RowInverter
from semobridge_ext.inversion.settings import Settings
from semobridge_ext.ops import topk
from semobridge_ext.ray.cluster import Cluster, actor_count, joined
from semobridge_ext.ray.pool import Pool
from semobridge_ext.ray.stage import loaded

Part = tuple[int, int, int]  # of a shard: its number, first row, end


@contextmanager
def _pool(
    function: str, cluster: Cluster, make: Callable[..., Any], arguments: dict[str, Any]
) -> Iterator[Pool]:
    with joined(function, cluster.address) as ray:
        actors = actor_count(function, ray, cluster)
        yield Pool(function, ray, make, arguments, actors, cluster.gpus)


# -- extract -----------------------------------------------------------------------------------------


class _Names:
    """A model that a node loads by its names; refused where its weights are not the driver's."""

    def __init__(self, function: str, names: tuple[str, str | None], digest: str) -> None:
        self.function, self.names, self.digest = function, names, digest

    def load(self, device: str) -> models.Encoder:
        encoder = models.load(self.function, *self.names, device)
        if (found := models.weights_digest(encoder.model)) != self.digest:
            raise ValueError(
                f"{self.function}: --model must have the same weights on every node, got {self.names[0]} "
                f"with {found} where the driver has {self.digest}; copy the checkpoint to all of them"
            )
        return encoder


class _Extractor:
    """A batch of items → what `extract` takes from its loader, and features [n, D] float32."""

    def __init__(self, names: _Names, hidden: bool, max_pixels: int, device: str) -> None:
        encoder = names.load(device)
        self._encoder = encoder.before_projection("extract") if hidden else encoder
        self._max_pixels, self._device = max_pixels, device

    def __call__(self, items: list[Item]) -> tuple[list[Decoded], np.ndarray]:
        batch = batch_of(items, self._encoder.preprocess, self._max_pixels)
        return batch.inputs, models.rows_of(self._encoder, batch.pixels, self._device)


def _raised(error: Exception) -> Any:
    raise error


def _tried(read: Callable[[], Any]) -> Callable[[], Any]:
    """What a reader gives or raises now, to be given or raised where there is no file."""
    try:
        found = read()
    except Exception as error:  # of every kind: the image is at fault, not the run
        return partial(_raised, error)
    if hasattr(found, "read"):
        return partial(io.BytesIO, found.read())
    return partial(given, found)


def _carried(source: Source, item: Item) -> Item:
    if source.kind != "tar":  # a path, which every node can read
        return item
    return Item(item.path, _tried(item.read), _tried(item.fields))


def encoded(
    source: Source,
    names: tuple[str, str | None],
    digest: str,
    start: int,
    *,
    batch_size: int,
    hidden: bool,
    max_pixels: int,
    device: str,
    cluster: Cluster,
) -> Generator[tuple[list[Decoded], np.ndarray], None, None]:
    """Inputs from `start` on, a batch at a time, with the features of those that have some."""
    items = (_carried(source, item) for item in source.items(start))
    arguments = {
        "names": _Names("extract", names, digest), "hidden": hidden, "max_pixels": max_pixels,
        "device": device,
    }  # fmt: skip
    with _pool("extract", cluster, _Extractor, arguments) as pool:
        yield from pool.results(iter(lambda: list(islice(items, batch_size)), []))


# -- map and search ----------------------------------------------------------------------------------


class _Shards:
    """Rows of shards by part; the folder is listed once."""

    def __init__(self, function: str, path: Path) -> None:
        self._folder = open_features(function, path)
        self._folder.shards()

    def rows(self, part: Part) -> Tensor:
        index, first, end = part
        return self._folder.features(index)[first:end]


class _Mapper:
    def __init__(self, shards: Path, mapping: bytes, dtype: str) -> None:
        self._shards, self._dtype = _Shards("map", shards), dtype
        self._mapping = loaded(mapping, "mapping.safetensors", mappings.load)

    def __call__(self, part: Part) -> np.ndarray:
        return mappings.mapped_rows(self._mapping, self._shards.rows(part), self._dtype)


def mapped(
    shards: Path, parts: Iterator[Part], mapping: bytes, dtype: str, cluster: Cluster
) -> Generator[np.ndarray, None, None]:
    """The mapped rows of every part, in their order."""
    arguments = {"shards": shards.resolve(), "mapping": mapping, "dtype": dtype}
    with _pool("map", cluster, _Mapper, arguments) as pool:
        yield from pool.results(parts)


class _Searcher:
    def __init__(self, shards: Path, queries: np.ndarray, k: int, unit: bool) -> None:
        self._shards, self._k, self._unit = _Shards("search", shards), k, unit
        self._queries = torch.from_numpy(np.array(queries))

    def __call__(self, part: Part) -> tuple[np.ndarray, np.ndarray, int]:
        rows = self._shards.rows(part)
        rows = rows if self._unit else torch.nn.functional.normalize(rows.float(), dim=1)
        found = topk(self._queries, rows, min(self._k, len(rows)))
        return found.scores.numpy(), found.indices.numpy(), len(rows)


def searched(
    shards: Path, parts: Iterator[Part], queries: Tensor, k: int, *, unit: bool, cluster: Cluster
) -> Generator[tuple[Tensor, Tensor, int], None, None]:
    """Scores and rows of the best of every part, in their order, and its size."""
    arguments = {"shards": shards.resolve(), "queries": queries.numpy(), "k": k, "unit": unit}
    with _pool("search", cluster, _Searcher, arguments) as pool:
        for scores, rows, size in pool.results(parts):
            yield torch.tensor(scores), torch.tensor(rows), size


# -- invert ------------------------------------------------------------------------------------------


class _Inverter:
    def __init__(self, function: str, names: _Names, options: dict[str, Any]) -> None:
        encoder = names.load("cpu")
        self._inverter = RowInverter(function, encoder.model, tokenizer=encoder.tokenizer, **options)

    def __call__(self, job: tuple[np.ndarray, np.ndarray, float]) -> dict[str, np.ndarray]:
        tokens, targets, scale = job
        chunk = self._inverter.chunk(
            torch.from_numpy(np.array(tokens)), torch.from_numpy(np.array(targets)), scale
        )
        return {name: value.numpy() for name, value in vars(chunk).items()}


def elsewhere(
    function: str,
    names: tuple[str, str | None],
    digest: str,
    cluster: Cluster,
    *,
    template: str,
    vectors: int,
    settings: Settings,
    weights: torch.dtype | None,
    compute: torch.dtype | None,
) -> Elsewhere:
    """What makes the chunks of an inversion on a cluster."""
    options = {
        "template": template, "vectors": vectors, "settings": settings, "weights": weights,
        "compute": compute,
    }  # fmt: skip
    arguments = {"function": function, "names": _Names("invert", names, digest), "options": options}

    def chunks(
        parts: Iterator[tuple[Tensor, Tensor]], scale: float, interrupt: Interrupt
    ) -> Generator[Chunk, None, None]:
        jobs = ((tokens.numpy(), targets.cpu().numpy(), scale) for tokens, targets in parts)
        with _pool("invert", cluster, _Inverter, arguments) as pool:
            for found in pool.results(jobs, lambda: interrupt.asked):
                yield Chunk(**{name: torch.tensor(value) for name, value in found.items()})

    return chunks

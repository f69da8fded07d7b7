"""Queries for a folder of shards: texts and images by the model that made it, through its mapping."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from semobridge_ext.cli import images, mappings, models
from semobridge_ext.cli.shards import Folder


def check_model(folder: Folder) -> None:
    if folder.maker is None and "model" not in folder.settings():
        raise ValueError(
            f"{folder.function}: SHARDS must name their model, got {folder.path} without settings.json; "
            "extract them here, or name it with --model"
        )


def check_width(folder: Folder, rows: Tensor) -> None:
    """Refuses queries of another model than the one that made the rows, as far as the width tells."""
    width = next((shape[1] for index in folder.shards() if all(shape := folder.shape(index))), None)
    if width not in (None, rows.shape[1]):
        named = "" if folder.maker is None else f" of --model {folder.maker[0]}"
        raise ValueError(
            f"{folder.function}: SHARDS must be as wide as the queries{named}, {rows.shape[1]}, got {width} "
            f"in {folder.path}; name the model that made them"
        )


def text_refusal(folder: Folder, argument: str, instead: str) -> str | None:
    """Why texts cannot be compared with these shards; None where they can."""
    settings = folder.settings()
    kind = settings.get("features")
    if kind != mappings.HIDDEN and settings.get("text") is not False:
        return None
    return (
        f"{folder.function}: {argument} must meet features that texts can be compared with, got "
        f"'{kind}'; search the projected features, or by {instead}"
    )


def gallery_rows(folder: Folder) -> Iterator[Tensor]:
    """Unit rows in order; raw ones pass through memory a block at a time to lose their lengths."""
    unit = bool(folder.settings().get("normalized"))
    for index in folder.shards():
        shard = folder.features(index)
        for part in (shard,) if unit else shard.split(1 << 14):
            if part.numel():
                yield part if unit else normalize(part.float(), dim=1)


class QueryEncoder:
    """Texts and images to unit rows in the space of the shards; images as [3, H, W] of `pixels`."""

    def __init__(self, folder: Folder, device: str = "cpu") -> None:
        settings = folder.settings()
        self._function, self._device = folder.function, device
        self._encoder = models.maker_of(folder.function, folder, device)
        self._mapping = None
        if settings.get("command") == "map":
            self._mapping = mappings.load(folder.path / "mapping.safetensors")
        self._hidden = mappings.HIDDEN in (settings.get("features"), settings.get("takes"))

    def texts(self, texts: Sequence[str]) -> Tensor:  # [N, D]
        rows, mapping = self._encoder.texts(texts), self._mapping
        return normalize(rows if mapping is None or mapping.text is None else mapping.text(rows), dim=1)

    def pixels(self, name: str, file: Any, max_pixels: int, argument: str) -> Tensor:  # [3, H, W]
        """A path or binary file as the model takes it; `name` stands in the error."""
        try:
            with images.opened(file, max_pixels) as image:
                return self._encoder.preprocess(image)
        except Exception as error:  # PIL's plugins raise whatever their parsing meets
            # Pillow names an open file by its address in memory.
            told = str(error).partition(" <_io.")[0]
            raise ValueError(
                f"{self._function}: {argument} must be a readable image, got {name} ({told}); choose another"
            ) from error

    def _raw(self, pixels: Sequence[Tensor]) -> Tensor:  # [N, D]
        encoder = self._encoder.before_projection(self._function) if self._hidden else self._encoder
        return encoder.images(torch.stack(list(pixels)).to(self._device)).clone()

    def images(self, pixels: Sequence[Tensor]) -> Tensor:  # N of [3, H, W] -> [N, D]
        rows = self._raw(pixels)
        return normalize(rows if self._mapping is None else self._mapping.apply(rows), dim=1)

    def mixed(self, texts: Sequence[str], pixels: Sequence[Tensor], weight: float) -> Tensor:  # [N, D]
        """`weight` of each text and the rest of its image; centred means are mixed alike."""
        if self._mapping is not None and self._mapping.fuse is not None:
            return self._mapping.fuse(self._encoder.texts(texts), self._raw(pixels), weight)
        return normalize(weight * self.texts(texts) + (1 - weight) * self.images(pixels), dim=1)

"""`encode_images`: images as people have them to features in memory, by the readers of `extract`."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from semobridge_ext import _errors, _files, _numbers
from semobridge_ext.cli.images import PIXELS
from semobridge_ext.cli.listing import IMAGES, Item, given
from semobridge_ext.cli.sources import Source, open_source
from semobridge_ext.clip.encode import encode_image
from semobridge_ext.clip.families import adapter_of
from semobridge_ext.clip.preprocess import Transform, preprocess_of
from semobridge_ext.clip.projections import affine_image
from semobridge_ext.runtime.plain_modes import plain_device

_NAME = "encode_images"


class CorruptImage(NamedTuple):
    """An input that could not be decoded."""

    position: int  # among the inputs
    name: str
    reason: str


class ImageFeatures(NamedTuple):
    """Features of the inputs that were decoded, and what the others were; K of N inputs."""

    features: Tensor  # [K, D]
    indices: Tensor  # [K] int64, the input of each row
    names: list[str]  # [K] paths; of what has none its position, as "image 3"
    labels: list[str | None]  # [K] folder or column `label` of a source
    corrupt: list[CorruptImage]  # N - K


@plain_device()
def encode_images(
    model: Any,
    images: Any,
    *,
    preprocess: Transform | None = None,
    project: bool = True,
    normalize: bool = True,
    batch_size: int = 128,
    workers: int = 0,
    corrupt: str = "raise",
    max_pixels: int = PIXELS,
    progress: bool = False,
) -> ImageFeatures:
    """Image features of a CLIP model for files, folders, PIL images or arrays.

    Each image is bounded, turned upright by EXIF and brought to eight bits as ``semobridge-ext extract`` does
    it, preprocessed, encoded, and its feature f scaled to ``f / ‖f‖``.

    Args:
        model: a CLIP model of a family that ``semobridge_ext.clip`` lists; it runs on its own device.
        images: what ``extract`` takes (a folder, a list file, a .csv, a .tar or its brace pattern), the
            path of one image, one PIL image, or an iterable of N paths, PIL images, [H, W, 3] or [H, W] uint8
            arrays or tensors, mixed as they come.
        preprocess: a PIL image to [3, H, W]; None: the model's own, where open_clip, OpenAI's clip,
            Hugging Face or the embedded model says what it is.
        project: False gives the features before the image projection.
        normalize: False gives the raw features.
        batch_size: images encoded at once.
        workers: processes that decode; 0 decodes in this one.
        corrupt: ``"raise"`` refuses the first image that cannot be decoded, ``"skip"`` reports it in
            the result.
        max_pixels: larger images cannot be decoded.
        progress: a bar on stderr.

    Returns:
        A named tuple: ``features`` [K, D] in the model's dtype on its device, without gradient; ``indices``
        [K] int64 (CPU), the inputs that these rows belong to; ``names`` and ``labels`` of the same K;
        ``corrupt``, the N − K others, each with its position, name and reason. Inputs keep their order.

    Raises:
        TypeError: not a CLIP model, an input of another kind, or project=False without a linear
            projection. ValueError: no images, a corrupt one, a model that does not say its preprocessing.
            FileNotFoundError: no such source.

    Numerics: the model's own forward pass in evaluation mode; lengths in float32 or wider. A zero row stays
        zero. The batch that an image is in can change the last bits of its row.

    Memory: O(batch_size·(3·H·W + activations) + N·D), with ``workers`` two batches of pixels each beside it;
        an image at ``max_pixels`` takes up to a gigabyte while it is decoded. An iterable is read as it goes,
        with workers held whole.

    Example:
        >>> import numpy as np, semobridge_ext as sb
        >>> model = sb.load_picto_clip()[0]
        >>> found = sb.encode_images(model, [np.zeros((60, 80, 3), np.uint8), np.full((9, 9), 200, np.uint8)])
        >>> found.features.shape, found.names
        (torch.Size([2, 192]), ['image 0', 'image 1'])
    """
    if corrupt not in ("raise", "skip"):
        raise ValueError(_errors.message(_NAME, "corrupt", "be 'raise' or 'skip'", corrupt, "choose one"))
    _check_count("batch_size", batch_size, 1)
    _check_count("workers", workers, 0)
    _check_count("max_pixels", max_pixels, 1)
    if preprocess is not None and not callable(preprocess):
        remedy = "None takes the model's own"
        raise TypeError(_errors.message(_NAME, "preprocess", "be callable", preprocess, remedy))
    transform = preprocess_of(_NAME, model) if preprocess is None else preprocess
    if not project:
        affine_image(_NAME, adapter_of(_NAME, model))
    with tempfile.TemporaryDirectory(prefix="semobridge-ext-") as folder:
        source = _source(images, Path(folder) / "inputs.jsonl", workers)
        run = _Run(model, project, normalize, corrupt == "skip")
        run.encode(source, transform, int(batch_size), int(workers), int(max_pixels), progress)
    return run.result()


def _check_count(name: str, value: Any, low: int) -> None:
    if not _numbers.is_whole(value):
        raise TypeError(_errors.message(_NAME, name, "be an int", value, "pass a number"))
    if value < low:
        contract = "be positive" if low else "not be negative"
        raise ValueError(_errors.message(_NAME, name, contract, value, "pass a larger number"))


# -- where images come from ------------------------------------------------------------------------------


def _source(images: Any, listing: Path, workers: int) -> Source:
    if isinstance(images, (str, os.PathLike)):
        text = _files.place(images, _NAME)
        is_image = text.lower().endswith(IMAGES) and not os.path.isdir(text)
        if not is_image:
            return open_source(_NAME, text, listing, label="parent", column=None)
        if not os.path.isfile(text):
            raise FileNotFoundError(f"{_NAME}: images must exist, got {text}; check the name")
        images = [text]
    elif _is_image(images):
        images = [images]
    if not isinstance(images, Iterable) or isinstance(images, (bytes, dict)):
        contract = "be a source, an image or an iterable of images"
        raise TypeError(_errors.message(_NAME, "images", contract, images, "pass a list of paths"))
    if workers or isinstance(images, Sequence):
        images = list(images)  # with workers each process goes through it by itself
        for i, image in enumerate(images):
            _check_kind(i, image)
    total = len(images) if hasattr(images, "__len__") else None
    return Source("list", (), total, 0, {}, partial(_items, images))


def _is_image(value: Any) -> bool:
    from PIL import Image

    if isinstance(value, Image.Image):
        return True
    return isinstance(value, (np.ndarray, Tensor)) and _is_picture(value)


def _is_picture(value: Any) -> bool:
    return value.ndim == 2 or (value.ndim == 3 and value.shape[2] == 3)


def _check_kind(i: int, image: Any) -> None:
    from PIL import Image

    if isinstance(image, (str, os.PathLike, Image.Image)):
        return
    is_array = isinstance(image, (np.ndarray, Tensor))
    if is_array and image.dtype in (np.uint8, torch.uint8) and _is_picture(image):
        return
    contract = "be a path, a PIL image or a uint8 array [H, W, 3] or [H, W]"
    got = f"{image.dtype} {list(image.shape)}" if is_array else _errors.describe(image)
    raise TypeError(_errors.message(_NAME, f"images[{i}]", contract, got, "convert it, for example by PIL"))


def _items(images: Iterable[Any], start: int) -> Iterator[Item]:
    for i, image in enumerate(images):
        if i >= start:
            yield _item(i, image)


def _item(i: int, image: Any) -> Item:
    from PIL import Image

    _check_kind(i, image)
    if isinstance(image, (str, os.PathLike)):
        path = _files.place(image, _NAME)
        return Item(path, partial(given, path), dict)
    if isinstance(image, Image.Image):
        return Item(f"image {i}", partial(given, image), dict)
    pixels = image.numpy(force=True) if isinstance(image, Tensor) else image
    return Item(f"image {i}", partial(Image.fromarray, np.ascontiguousarray(pixels)), dict)


# -- the run ---------------------------------------------------------------------------------------------


class _Run:
    """Rows and facts of the inputs so far."""

    def __init__(self, model: Any, project: bool, normalize: bool, skip: bool) -> None:
        self.model, self.project, self.normalize, self.skip = model, project, normalize, skip
        self.parts: list[Tensor] = []
        self.indices: list[int] = []
        self.names: list[str] = []
        self.labels: list[str | None] = []
        self.corrupt: list[CorruptImage] = []

    def encode(
        self, source: Source, transform: Transform, batch: int, workers: int, most: int, progress: bool
    ) -> None:
        from tqdm.auto import tqdm

        from semobridge_ext.cli.decode import batches

        is_cuda = next(self.model.parameters()).is_cuda
        seen = 0
        with tqdm(total=source.total, unit="image", desc=_NAME, disable=not progress) as bar:
            for found in batches(source, transform, 0, batch, workers, is_cuda, most):
                for one in found.inputs:
                    self._note(seen, one)
                    seen += 1
                if found.pixels is not None:
                    rows = encode_image(self.model, found.pixels, project=self.project, batch_size=batch)
                    self.parts.append(self._scaled(rows))
                bar.update(len(found.inputs))
        if not seen:
            raise ValueError(f"{_NAME}: images must not be empty, got none; pass at least one")

    def _note(self, position: int, one: Any) -> None:
        if not one.reason:
            self.indices.append(position)
            self.names.append(one.path)
            self.labels.append(one.fields.get("label"))
            return
        if not self.skip:
            raise ValueError(
                f"{_NAME}: images[{position}] must be an image that can be decoded, got {one.path} "
                f"({one.reason}); pass corrupt='skip' to go on without it"
            )
        self.corrupt.append(CorruptImage(position, one.path, one.reason))

    def _scaled(self, rows: Tensor) -> Tensor:  # [B, D] -> [B, D]
        if not self.normalize:
            return rows
        wide = rows if rows.dtype is torch.float64 else rows.float()
        return torch.nn.functional.normalize(wide, dim=1).to(rows.dtype)

    def result(self) -> ImageFeatures:
        if not self.parts:
            first = self.corrupt[0]
            raise ValueError(
                f"{_NAME}: images must hold one that can be decoded, got {len(self.corrupt)} that cannot, "
                f"the first {first.name} ({first.reason}); check them"
            )
        indices = torch.tensor(self.indices, dtype=torch.int64)
        return ImageFeatures(torch.cat(self.parts), indices, self.names, self.labels, self.corrupt)

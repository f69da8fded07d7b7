"""cache_block_inputs: what enters the last vision block, once an image and view; in memory or in a file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from semobridge_ext import _arrays, _errors, _files, _numbers, _schema
from semobridge_ext._schema import Field
from semobridge_ext.clip.encode import evaluating
from semobridge_ext.discovery.vision_block import inputs_of, tower_of

_FORMAT = "semobridge-ext block inputs 1"
_DTYPES = (torch.float16, torch.float32, torch.float64)
# In a mapped file nobody has read the rows yet, and the training looks at them.
_SCHEMA = {"inputs": Field(("V", "N", "L", "T"), _DTYPES, finite=False, streamed=True)}


def cache_block_inputs(
    model: Any,
    images: Any,  # [N, 3, H, W], [V, N, 3, H, W], or batches
    *,
    views: int = 2,
    dtype: torch.dtype = torch.float16,
    batch_size: int = 64,
    out: Any = None,
) -> Tensor:  # [V, N, L, T]
    """The L tokens that enter the last block of a model's vision tower, for every view of every image.

    ``SpectralGCD(model=...)`` trains that block on them: the blocks before it are frozen, and paid here once.

    Args:
        model: a CLIP model of a family that ``semobridge_ext.clip`` lists, with a class token.
        images: preprocessed, floating point, a tensor or an array. [V, N, 3, H, W]: V views of N images.
            [N, 3, H, W]: one view. Anything else is
            gone through ``views`` times, and gives batches [B, 3, H, W], or pairs that begin with one, as a
            DataLoader with random augmentations does. It must keep the images' order: shuffle=False.
        views: V of a loader.
        dtype: float16, float32 or float64 of the result. The tower itself computes in float32 (float64 for a
            float64 model).
        batch_size: images of a tensor that are encoded at once.
        out: a file for the result; what is returned is then mapped from it where it has 64 MiB or more.
            ``load_block_inputs`` reads it again.

    Returns:
        [V, N, L, T] on the CPU, L tokens of the tower's width T.

    Raises:
        TypeError: not a CLIP model, or images that are none. NotImplementedError: a tower without a class
            token, or one that computes something else. ValueError: no image, passes of a loader that give
            other numbers of images, images of another size, values beyond float16.

    Numerics: without gradient; the tower in plain PyTorch, rounded once to ``dtype``.

    Memory: V·N·L·T values, which in float16 are 0.6 MB for two views of an image in ViT-B/16 (L = 197,
        T = 768), 6 GB for 10 000; of a loader twice that while the batches are joined.

    Example:
        >>> import torch, semobridge_ext as sb
        >>> model = sb.load_picto_clip()[0]
        >>> sb.discovery.cache_block_inputs(model, torch.zeros(2, 5, 3, 48, 48)).shape
        torch.Size([2, 5, 37, 192])
    """
    where = "cache_block_inputs"
    if dtype not in _DTYPES:
        remedy = "float16 takes the least room"
        raise TypeError(_errors.message(where, "dtype", "be float16, float32 or float64", dtype, remedy))
    if not _numbers.is_whole(views) or views < 1:
        remedy = "2 for a loader of random views"
        raise ValueError(_errors.message(where, "views", "be a whole number ≥ 1", views, remedy))
    _numbers.check_number(where, "batch_size", batch_size, least=1, whole=True, remedy="64 is the default")
    images = _arrays.tensor(where, "images", images)
    adapter, tower, rows = tower_of(where, model)
    found: list[Tensor] = []
    with evaluating(model), torch.no_grad():
        for batches in _views(where, images, views, batch_size):
            parts = [inputs_of(adapter, tower, rows, batch).to("cpu", dtype) for batch in batches]
            if not parts:
                remedy = "pass at least one"
                raise ValueError(_errors.message(where, "images", "hold images", "none", remedy))
            found.append(torch.cat(parts))
            if len(found[-1]) != len(found[0]):
                got, remedy = f"{len(found[0])}, then {len(found[-1])}", "leave shuffle and sampling out"
                contract = "give as many images at every pass"
                raise ValueError(_errors.message(where, "images", contract, got, remedy))
    made = torch.stack(found)
    for view in made:
        remedy = "choose dtype=torch.float32"
        _errors.check_rows(where, "inputs", view.reshape(-1, view.shape[2]), remedy, infinite=False)
    if out is None:
        return made
    _files.save_tensors(out, {"inputs": made}, {"format": _FORMAT})
    return load_block_inputs(out)


def load_block_inputs(path: Any) -> Tensor:  # [V, N, L, T]
    """Reads what ``cache_block_inputs(out=)`` wrote; a file of 64 MiB or more is mapped, not read.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: no such file. ValueError: a foreign or truncated file, which is named.
    """
    found = _schema.load("load_block_inputs", path, _FORMAT, _SCHEMA)[0]["inputs"]
    _schema.need("load_block_inputs", path, found.numel() > 0, "tokens of images", found)
    return found


def _views(where: str, images: Any, views: int, batch_size: int) -> Iterator[Iterable[Tensor]]:
    if isinstance(images, Tensor):
        if images.dim() not in (4, 5) or images.shape[-3] != 3:
            remedy = "preprocess them with the model's transform"
            contract = "be [N, 3, H, W] or [V, N, 3, H, W]"
            raise ValueError(_errors.message(where, "images", contract, images, remedy))
        _errors.check_values(where, "images", _errors.check_float_tensor(where, "images", images))
        for view in images if images.dim() == 5 else images[None]:
            yield view.split(min(int(batch_size), len(view))) if len(view) else ()
        return
    if not isinstance(images, Iterable) or isinstance(images, (str, bytes)):
        remedy = "pass a tensor or a DataLoader"
        raise TypeError(_errors.message(where, "images", "be a tensor or give batches", images, remedy))
    for _ in range(views):
        yield (_batch(where, batch) for batch in images)


def _batch(where: str, batch: Any) -> Tensor:
    value = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    if not isinstance(value, Tensor) or value.dim() != 4:
        remedy = "collate them into one tensor"
        got = _errors.describe(value)
        raise TypeError(_errors.message(where, "images", "give batches [B, 3, H, W]", got, remedy))
    return _errors.check_float_tensor(where, "images", value)

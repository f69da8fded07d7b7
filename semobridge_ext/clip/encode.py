"""Features of a CLIP model's towers, behind or before their projections.

What stands before the projection is taken from the model's own forward pass: the input of the
projecting layer, or what the final layer norm gave where the projection is a bare matrix.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from semobridge_ext import _arrays, _errors, _numbers
from semobridge_ext.clip.families import adapter_of
from semobridge_ext.clip.projections import affine_image, affine_text
from semobridge_ext.runtime.plain_modes import plain_device


def batches(inputs: Any, batch_size: int, device: torch.device) -> Iterator[Any]:
    """A tensor [B, ..], or a mapping of such tensors, in parts of ``batch_size`` rows on the device."""
    if isinstance(inputs, Mapping):
        parts = {name: torch.as_tensor(value) for name, value in inputs.items()}
        for i in range(0, len(next(iter(parts.values()))), batch_size):
            yield {name: value[i : i + batch_size].to(device) for name, value in parts.items()}
    else:
        for part in torch.as_tensor(inputs).split(batch_size):
            yield part.to(device)


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """The model in evaluation mode; left as it was found."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _cast(images: Any, dtype: torch.dtype) -> Any:
    if isinstance(images, Mapping):  # masks and shapes keep their integers
        return {n: v.to(dtype) if v.is_floating_point() else v for n, v in images.items()}
    return images.to(dtype)


def _pixels(images: Any, batch_size: Any) -> Any:
    where = "encode_image"
    _numbers.check_number(where, "batch_size", batch_size, least=1, whole=True, remedy="256 is the default")
    if isinstance(images, Mapping):
        return images
    images = _errors.check_float_tensor(where, "images", _arrays.tensor(where, "images", images))
    if images.dim() != 4:
        remedy = "preprocess them with the model's transform, and stack them"
        raise ValueError(_errors.message(where, "images", "be [B, 3, H, W]", images, remedy))
    return images


def _token_ids(ids: Any, batch_size: Any) -> Any:
    where = "clip.encode_text"
    _numbers.check_number(where, "batch_size", batch_size, least=1, whole=True, remedy="256 is the default")
    if isinstance(ids, Mapping):
        return ids
    found = _arrays.whole(ids)
    if not isinstance(found, Tensor) or found.dtype is not torch.int64 or found.dim() != 2:
        contract = "be token ids [B, L], whole numbers"
        remedy = "tokenize the texts, or pass them to semobridge_ext.encode_text"
        raise TypeError(_errors.message(where, "ids", contract, _errors.describe(ids), remedy))
    return found


@plain_device()
def encode_image(
    model: Any,
    images: Any,  # [B, 3, H, W], or a Hugging Face batch
    *,
    project: bool = True,
    batch_size: int = 256,
) -> Tensor:  # [B, D], or [B, V] with project=False
    """Raw image features of a CLIP model, or what its projection reads.

    Args:
        model: a CLIP model of a family that ``semobridge_ext.clip`` lists.
        images: [B, 3, H, W] preprocessed, on any device; moved to the model's device and dtype. For a
            Hugging Face model also the mapping of tensors that its processor returns.
        project: False gives the pooled, normed features x before the projection A; ``x·A``, or ``x·A + a``
            where it has a bias, is what True gives.
        batch_size: images encoded at once.

    Returns:
        [B, D] or [B, V] in the model's dtype, not normalised, without gradient.

    Raises:
        TypeError: not a CLIP model, or project=False without a linear projection. NotImplementedError:
            an unknown pooling.

    Numerics: the model's own forward pass, in evaluation mode.

    Memory: O(batch_size) activations beside the result.

    Example:
        >>> import torch, semobridge_ext as sb
        >>> model = sb.load_picto_clip()[0]
        >>> sb.clip.encode_image(model, torch.zeros(2, 3, 48, 48), project=False).shape
        torch.Size([2, 192])
    """
    adapter = adapter_of("encode_image", model)
    if not project:
        affine_image("encode_image", adapter)  # refuses in words where there is none
    images = _pixels(images, batch_size)
    run = adapter.encode_image if project else adapter.encode_image_hidden
    parameter = next(model.parameters())
    with evaluating(model), torch.no_grad():
        parts = batches(images, batch_size, parameter.device)
        return torch.cat([run(_cast(part, parameter.dtype)) for part in parts])


@plain_device()
def encode_text(
    model: Any,
    ids: Any,  # [B, L] int64, or a Hugging Face batch
    *,
    project: bool = True,
    batch_size: int = 256,
) -> Tensor:  # [B, D], or [B, T] with project=False
    """Raw text features of a CLIP model, or what its projection reads; see :func:`encode_image`.

    Args:
        model: as there.
        ids: [B, L] token ids, or the mapping of such tensors that a Hugging Face tokenizer returns.
        project: False gives the pooled, normed features x before the projection W.
        batch_size: texts encoded at once.

    Returns:
        [B, D] or [B, T] in the model's dtype, not normalised, without gradient.

    Raises:
        TypeError: not a CLIP model, or project=False without a linear projection. NotImplementedError:
            an unknown pooling.

    Numerics: the model's own, in evaluation mode; without a projection the rows are what it reads.

    Memory: one batch of activations beside the result.

    Example:
        >>> import semobridge_ext as sb
        >>> model, _, tokenizer = sb.load_picto_clip()
        >>> sb.clip.encode_text(model, tokenizer(["star", "house"])).shape
        torch.Size([2, 192])
    """
    adapter = adapter_of("encode_text", model)
    if not project:
        affine_text("encode_text", adapter)
    ids = _token_ids(ids, batch_size)
    with evaluating(model), torch.no_grad():
        parts = batches(ids, batch_size, next(model.parameters()).device)
        if project:
            return torch.cat([adapter.encode_text(part) for part in parts])
        return torch.cat([adapter.encode_text_with_hidden(part)[0] for part in parts])

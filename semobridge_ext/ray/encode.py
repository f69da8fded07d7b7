"""Images of a data set to features: what `semobridge-ext extract` does to a batch, as a callable."""

from __future__ import annotations

import io
import os
from typing import Any

import numpy as np
import torch
from torch import Tensor

from semobridge_ext import _numbers
from semobridge_ext._errors import describe, message
from semobridge_ext.cli import images, listing, models
from semobridge_ext.ray.columns import array, column, columns_of
from semobridge_ext.ray.stage import Columns, Stage, usable_device

_DTYPES = ("float32", "float16")


class Encode(Stage):
    """Encodes the images of a batch with a CLIP model: a callable for ``Dataset.map_batches``.

    A batch gets two columns: ``features`` [B, D], raw rows of ``encode_image``, and ``error``, empty where
    the image is sound. A row whose image cannot be decoded stays, with NaN for features and the reason as
    its error: one image is never worth the run.

    Args:
        model: an open_clip name, ``hf-hub:OWNER/NAME``, ``local-dir:FOLDER``, or "picto", the embedded CLIP:
            whatever ``semobridge-ext extract --model`` takes. A folder or checkpoint must lie at the same
            path on every node.
        pretrained: open_clip tag or checkpoint file of the model.
        column: where the images are: encoded bytes, paths, uint8 arrays [H, W, 3] or [H, W], or the
            dictionaries with "bytes" and "path" of Hugging Face's image columns.
        normalize: unit rows.
        before_projection: what the image projection is applied to.
        dtype: "float32" or "float16", of the features.
        max_pixels: larger images are refused.
        device: None takes the GPU that Ray gives the actor (``num_gpus=1``), else the CPU.

    Raises:
        TypeError, ValueError: a name that is not known (with near matches), or another kind of argument.
        RuntimeError: at the first batch, where the model cannot be loaded.

    Numerics: the features of ``semobridge-ext extract``, the same bits for the same batches on the same kind
        of device with the same number of threads; float32 before they are stored as ``dtype``. No gradient.

    Memory: the model, once an actor, and a batch of decoded images.

    Example:
        >>> import numpy as np, semobridge_ext as sb
        >>> batch = {"image": np.zeros((2, 48, 48, 3), np.uint8)}
        >>> sb.ray.Encode()(batch)["features"].shape
        (2, 192)
        >>> given = sb.ray.Encode.arguments(model="picto", normalize=True)  # checked on the driver
        >>> images.map_batches(
        ...     sb.ray.Encode, fn_constructor_kwargs=given, batch_size=128, num_gpus=1,
        ...     compute=ray.data.ActorPoolStrategy(size=4),
        ... )  # doctest: +SKIP
    """

    def __init__(
        self,
        model: str = "picto",
        pretrained: str | None = None,
        *,
        column: str = "image",
        normalize: bool = False,
        before_projection: bool = False,
        dtype: str = "float32",
        max_pixels: int = images.PIXELS,
        device: str | None = None,
    ) -> None:
        if not isinstance(model, str):
            remedy = "pass the name of a model; actors load it themselves"
            raise TypeError(message(self._name, "model", "be a str", describe(model), remedy))
        self._check_names(column=column)
        self._check_words(dtype=(dtype, _DTYPES))
        if not _numbers.is_whole(max_pixels) or max_pixels < 1:
            remedy = "leave it out for Pillow's own bound"
            contract, got = "be a whole number from 1 up", describe(max_pixels)
            raise ValueError(message(self._name, "max_pixels", contract, got, remedy))
        self._model = models.resolve(self._name, model, pretrained)
        self._column, self._normalize, self._hidden = column, bool(normalize), bool(before_projection)
        self._dtype, self._max_pixels, self._device = dtype, int(max_pixels), device
        self._encoder: models.Encoder | None = None

    def __call__(self, batch: Any) -> Columns:  # columns of B rows
        columns = columns_of(self._name, batch)
        given = column(self._name, "column", columns, self._column)
        found = [self._decoded(one) for one in given]
        sound = [i for i, (pixels, _) in enumerate(found) if pixels is not None]
        rows = self._rows([pixels for pixels, _ in found if pixels is not None])  # [n, D]
        features = np.full((len(found), rows.shape[1]), np.nan, self._dtype)
        with np.errstate(over="ignore"):  # infinity of float16, as extract finds it
            features[sound] = array(rows).astype(self._dtype)
        return {**columns, "features": features, "error": np.asarray([why for _, why in found], dtype=str)}

    def _loaded(self) -> tuple[models.Encoder, str]:
        device = usable_device(self._device)
        if self._encoder is None:
            encoder = models.load(self._name, *self._model, device)
            self._encoder = encoder.before_projection(self._name) if self._hidden else encoder
        return self._encoder, device

    def _decoded(self, one: Any) -> tuple[Tensor | None, str]:
        preprocess = self._loaded()[0].preprocess
        try:
            if isinstance(one, dict):
                one = one["bytes"] if one.get("bytes") is not None else one["path"]
            if isinstance(one, np.ndarray):
                from PIL import Image

                return preprocess(Image.fromarray(one)), ""
            # A path is looked at first: reading a FIFO would wait for ever.
            file = io.BytesIO(one) if isinstance(one, bytes) else listing._readable(os.fspath(one))
            with images.opened(file, self._max_pixels) as image:
                return preprocess(image), ""
        except Exception as error:  # PIL's plugins raise whatever their parsing meets
            reason = " ".join(str(error).split()) or type(error).__name__
            return None, f"{type(error).__name__}: {reason}"

    def _rows(self, pixels: list[Tensor]) -> Tensor:  # [n, D] float32
        encoder, device = self._loaded()
        if not pixels:  # the width is asked for all the same
            from PIL import Image

            return self._rows([encoder.preprocess(Image.new("RGB", (64, 64)))])[:0]
        rows = encoder.images(torch.stack(pixels).to(device))
        if self._normalize:
            rows = rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-12)
        return rows

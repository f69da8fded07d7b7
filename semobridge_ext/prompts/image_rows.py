"""Image features of a step: cached ones, or images that are transformed and encoded anew."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import normalize

from semobridge_ext import _errors
from semobridge_ext.clip.encode import encode_image
from semobridge_ext.discovery.training_data import views_of


class ImageRows(Protocol):
    count: int  # N
    views: int  # V

    def take(self, drawn: Tensor, seed: int) -> Tensor:
        """Unit rows [B, D] of images and views [B, 2] int64."""

    def facts(self) -> dict[str, Any]: ...


class CachedRows:
    """[N, D] or [V, N, D] features."""

    def __init__(
        self, where: str, X: Any, width: int, device: torch.device, dtype: torch.dtype, argument: str = "X"
    ) -> None:
        rows = views_of(where, X, argument)
        if rows.shape[2] != width:
            remedy = "take images and texts from the same model"
            raise ValueError(_errors.message(where, argument, f"have width {width}", rows, remedy))
        self.views, self.count = rows.shape[:2]
        self._rows = rows.to(device, dtype)

    def take(self, drawn: Tensor, seed: int) -> Tensor:
        image, view = drawn.to(self._rows.device).unbind(1)
        return normalize(self._rows[view, image], dim=1)

    def facts(self) -> dict[str, Any]:
        return {"X": self._rows}


class EncodedImages:
    """Images as the transform gives them, encoded by the model in every step."""

    views = 1

    def __init__(
        self, where: str, model: Any, images: Sequence[Any], transform: Callable[[Any], Tensor],
        device: torch.device, dtype: torch.dtype,
    ) -> None:  # fmt: skip
        if not callable(transform):
            remedy = "pass what makes a [3, H, W] tensor of an image"
            raise TypeError(_errors.message(where, "transform", "be callable", transform, remedy))
        if isinstance(images, (str, bytes)) or not hasattr(images, "__len__"):
            contract, remedy = "be a sequence of images", "pass a list: each is read in every epoch"
            raise TypeError(_errors.message(where, "images", contract, _errors.describe(images), remedy))
        if len(images) == 0:
            remedy = "pass at least one image"
            raise ValueError(_errors.message(where, "images", "hold an image", "none", remedy))
        self.count, self._where = len(images), where
        self._model, self._images, self._transform = model, images, transform
        self._device, self._dtype = device, dtype

    def take(self, drawn: Tensor, seed: int) -> Tensor:
        # The transform's draws come from PyTorch's generator, and depend on the step alone.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            batch = self._stacked([self._transform(self._images[i]) for i in drawn[:, 0].tolist()])
        return normalize(encode_image(self._model, batch).to(self._device, self._dtype), dim=1)

    def _stacked(self, parts: list[Any]) -> Tensor:  # [B, 3, H, W]
        first = parts[0]
        for part in parts:
            if not isinstance(part, Tensor) or part.dim() != 3 or part.shape != first.shape:
                contract, remedy = (
                    "give [3, H, W] tensors of one size",
                    "crop to one size and end in ToTensor",
                )
                got = _errors.describe(part)
                raise TypeError(_errors.message(self._where, "transform", contract, got, remedy))
        return torch.stack(parts)

    def facts(self) -> dict[str, Any]:
        return {"images": self._images if isinstance(self._images, Tensor) else self.count}

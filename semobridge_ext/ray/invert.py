"""OTI and OVI of a column of features, as a callable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from semobridge_ext._errors import describe, message
from semobridge_ext.cli import models
from semobridge_ext.inversion.inversion_map import InversionMap
from semobridge_ext.inversion.row_inverter import RowInverter
from semobridge_ext.inversion.settings import check_count, check_settings
from semobridge_ext.ray.columns import array, as_float, columns_of, rows
from semobridge_ext.ray.stage import Columns, Stage, content, loaded, usable_device

_STEPS = {"oti": 150, "ovi": 1000}
_TYPES = {None: None, "bfloat16": torch.bfloat16}


class Invert(Stage):
    """Inverts the features of a batch into pseudo-tokens: a callable for ``Dataset.map_batches``.

    Args:
        model, pretrained, device: as :class:`Encode`; the model whose features they are.
        kind: "oti", image features into words, or "ovi", text features into patches.
        template: of oti, as :func:`semobridge_ext.oti`.
        num_tokens: R pseudo-words, of ovi the pseudo-patches.
        steps: None takes 150, of ovi 1000.
        lr, weight_decay, patience: as :func:`semobridge_ext.oti`.
        start: of oti, a saved :class:`semobridge_ext.InversionMap` that predicts the start values: its path
            or bytes. None: one row of N(0, 0.02²) for all features, drawn from ``seed``.
        seed: of the start values.
        rows: B of the mean that is descended, the rows of the whole data set; None: those of the batch. With
            it a row's result does not depend on its batch.
        weights, compute: None, which is exact, or "bfloat16", as :func:`semobridge_ext.oti` takes
            torch.bfloat16.
        column: the features, [B, D] of any float dtype, any length, finite.

    The batch gets ``tokens`` [B, R, T], ``inverted`` [B, D], unit rows, and ``steps_done`` [B] int64.

    Raises:
        TypeError, ValueError: an argument of another kind, settings or a map that do not fit. RuntimeError:
            at the first batch, where the model cannot be loaded. ValueError: at a batch, another width, NaN
            or infinity (the rows are named).

    Numerics: those of :func:`semobridge_ext.oti` in float32 (float64 for a float64 model): with ``rows`` and
        ``start`` the bits of one call over the whole data set on a CPU.

    Memory: the model and its packed tower, once an actor; a batch is one chunk.

    Example:
        >>> import numpy as np, semobridge_ext as sb
        >>> invert = sb.ray.Invert(steps=2, rows=100)
        >>> found = invert({"features": np.eye(2, 192, dtype=np.float32)})
        >>> found["tokens"].shape, found["inverted"].shape, found["steps_done"].tolist()
        ((2, 1, 192), (2, 192), [2, 2])
    """

    _files = ("start",)

    def __init__(
        self,
        model: str = "picto",
        pretrained: str | None = None,
        *,
        kind: str = "oti",
        template: str = "a photo of {}",
        num_tokens: int = 1,
        steps: int | None = None,
        lr: float = 2e-2,
        weight_decay: float = 0.01,
        patience: int | None = None,
        start: Any = None,
        seed: int = 0,
        rows: int | None = None,
        weights: str | None = None,
        compute: str | None = None,
        column: str = "features",
        device: str | None = None,
    ) -> None:
        name = self._name
        self._check_words(kind=(kind, tuple(_STEPS)))
        self._check_names(column=column)
        for argument, value in (("weights", weights), ("compute", compute)):
            if value not in _TYPES:
                remedy = "leave it None for the exact choice"
                got = describe(value)
                raise ValueError(message(name, argument, 'be None or "bfloat16"', got, remedy))
        steps = _STEPS[kind] if steps is None else steps
        self._types = _TYPES[weights], _TYPES[compute]
        self._settings = check_settings(name, steps, lr, weight_decay, (), patience, 1e-4, self._types[0])
        self._vectors = check_count(name, "num_tokens", num_tokens, 1)
        self._rows = None if rows is None else check_count(name, "rows", rows, 1)
        self._seed = check_count(name, "seed", seed, 0)
        self._model = models.resolve(name, model, pretrained)
        self._kind, self._template, self._column, self._device = kind, template, column, device
        self._start: Any = None
        if start is not None:
            if kind == "ovi":
                remedy = "leave it out"
                raise ValueError(message(name, "start", 'stand beside kind="oti"', "it with ovi", remedy))
            self._start = loaded(content(name, "start", start), "map.safetensors", _load_map)
        self._inverter: RowInverter | None = None

    def __call__(self, batch: Any) -> Columns:  # columns of B rows
        columns = columns_of(self._name, batch)
        given = rows(self._name, "column", columns, self._column)
        inverter = self._loaded()
        if not len(given):
            given = torch.empty(0, inverter.width)
        init = self._drawn(inverter.shape) if self._start is None else self._start
        found = inverter.invert(as_float(given), init, self._rows)
        columns |= {"tokens": array(found.tokens), "inverted": array(found.features)}
        columns["steps_done"] = np.asarray(found.steps_done, np.int64)
        return columns

    def _loaded(self) -> RowInverter:
        if self._inverter is None:
            encoder = models.load(self._name, *self._model, usable_device(self._device))
            self._inverter = RowInverter(
                self._kind, encoder.model, tokenizer=encoder.tokenizer, template=self._template,
                vectors=self._vectors, settings=self._settings, weights=self._types[0],
                compute=self._types[1],
            )  # fmt: skip
        return self._inverter

    def _drawn(self, shape: tuple[int, int]) -> Tensor:  # [R, T]
        start = torch.Generator().manual_seed(self._seed)
        return torch.randn(shape, generator=start, dtype=torch.float32) * 0.02


def _load_map(path: Path) -> InversionMap:
    return InversionMap.load(path)

"""Inversions of rows that come a batch at a time, by one tower that is made ready once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from semobridge_ext.inversion.descent import Chunk, Interrupt, run_chunk
from semobridge_ext.inversion.invert import initial
from semobridge_ext.inversion.prepared import prepared
from semobridge_ext.inversion.settings import Settings
from semobridge_ext.inversion.targets import unit_targets


class RowInverter:
    """What `oti` or `ovi` do to a chunk.

    Args:
        function: oti or ovi. The others: as theirs; `vectors` are tokens or patches.
    """

    def __init__(
        self,
        function: str,
        model: Any,
        *,
        tokenizer: Any,
        template: str,
        vectors: int,
        settings: Settings,
        weights: torch.dtype | None,
        compute: torch.dtype | None,
    ) -> None:
        self._function, self._settings = function, settings
        self._engine, self._description = prepared(
            function, model, vectors, weights, compute, template, tokenizer
        )

    @property
    def width(self) -> int:
        """D."""
        return self._engine.dim

    @property
    def shape(self) -> tuple[int, int]:
        """R, T."""
        return self._engine.vectors, self._engine.width

    @property
    def _device(self) -> torch.device:
        return self._description["tower"].device

    def invert(
        self,
        feats: Tensor,  # [B, D]
        init: Any,  # as of oti
        rows: int | None,  # B of the mean; None: of these rows
    ) -> Chunk:
        """One chunk of features of any length."""
        engine = self._engine
        targets = unit_targets(
            self._function, "features", feats.to(self._device), engine.dim, engine.compute, self._device
        )
        tokens = initial(self._function, init, None, targets, engine, self._description)
        return self.chunk(tokens, targets, 1.0 / (rows or max(len(targets), 1)))

    def chunk(
        self,
        tokens: Tensor,  # [S, R, T]
        targets: Tensor,  # [S, D] unit rows
        scale: float,
    ) -> Chunk:
        """One chunk from its start values, on the CPU."""
        own, targets = tokens.to(self._device, copy=True), targets.to(self._device)
        interrupt = Interrupt()  # of nobody
        found = run_chunk(self._engine, own, targets, self._settings, scale, interrupt, lambda *_: None)
        return found.cpu()

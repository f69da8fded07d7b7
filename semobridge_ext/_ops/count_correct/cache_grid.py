"""How many rows a cache model gets right, for every β, set of weights and α of a grid, on the CPU.

    logit_c = text_c + α·Σ_{s of class c} w_s·exp(−β(1 − ⟨x, key_s⟩))

csrc/count_correct/cache_grid.h says how one pass over a row serves all α.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from semobridge_ext.runtime.backend import _C
from semobridge_ext.runtime.threads import thread_count
from semobridge_ext.runtime.views import address, values, view

_CELLS = 1 << 22  # cosines of a block of rows at a time
_NONE = (0, 0, 0, 0, 0)


class CacheGrid:
    """The keys of a cache in the order of the kernel.

    Args:
        keys: [S, D] on the CPU, float32 or float64.
        labels: [S] int64, 0 .. classes − 1.
        classes: C.
        weights: [G, S] sets of weights; None: one set of ones.

    Memory: a copy of the keys and one block of 4 million cosines.
    """

    def __init__(self, keys: Tensor, labels: Tensor, classes: int, weights: Tensor | None) -> None:
        counts = torch.bincount(labels, minlength=classes)
        self._classes = torch.argsort(counts, descending=True, stable=True)  # place -> class
        self._places = torch.empty_like(self._classes)
        self._places[self._classes] = torch.arange(classes)
        order = torch.argsort(labels, stable=True)
        layer = torch.empty_like(order)  # the how-manieth of its class a key is
        layer[order] = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels[order]]
        order = torch.argsort(layer * classes + self._places[labels])
        sizes = torch.bincount(layer)
        self._layers = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
        self._keys = keys[order]
        self.sets = 1 if weights is None else len(weights)
        self._weights: Tensor | None = None
        if weights is not None:
            pad = _C.CACHE_GRID_PAD
            width = (len(keys) + pad - 1) // pad * pad + pad
            self._weights = keys.new_zeros(self.sets, width)
            self._weights[:, : len(keys)] = weights[:, order]

    def count(
        self,
        x: Tensor,  # [N, D] in the space of the keys
        text: Tensor,  # [N, C] logits
        labels: Tensor,  # [N] int64
        betas: Sequence[float],
        alphas: Sequence[float],
    ) -> Tensor:  # [B, G, A] int64
        """Rows that are right with each value."""
        sharp = torch.tensor(betas, dtype=torch.float64)
        ascending, places = torch.sort(torch.tensor(alphas, dtype=torch.float64))
        total = torch.zeros(len(betas), self.sets, len(alphas), dtype=torch.int64)
        step = max(1, _CELLS // max(1, len(self._keys)))
        for rows, logits, own in zip(x.split(step), text.split(step), labels.split(step), strict=True):
            cosines = rows @ self._keys.T
            ordered = logits[:, self._classes].to(cosines.dtype)
            codes = values(self._places[own])
            found = torch.empty_like(total)
            _C.count_cache_grid(
                view(cosines), view(ordered), address(codes), address(self._classes),
                address(self._layers), len(self._layers) - 1,
                _NONE if self._weights is None else view(self._weights),
                address(sharp), len(sharp), address(ascending), len(ascending), address(found),
                thread_count(),
            )  # fmt: skip
            total += found
        unsorted = torch.empty_like(total)
        unsorted[:, :, places] = total
        return unsorted

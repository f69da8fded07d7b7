"""What a trained SpectralGCD says of images: from features, or from what enters the block it trained."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from semobridge_ext import _errors, _inputs
from semobridge_ext._parameters import Parameters
from semobridge_ext.discovery import network, vision_block
from semobridge_ext.discovery.accuracy import gcd_accuracy
from semobridge_ext.discovery.losses import STUDENT_TEMPERATURE
from semobridge_ext.discovery.training_data import block_inputs
from semobridge_ext.fewshot.estimator import CHUNK, exactly, not_fitted
from semobridge_ext.runtime.rows import compute_dtype

BLOCK_ROWS = 128  # images whose keys and values exist at once


class Predictions(Parameters):
    """The verbs that need no training: logits, predict_proba, predict, score, and features of a block."""

    classes_: np.ndarray
    old_classes_: np.ndarray
    n_features_in_: int
    losses_: Tensor
    _names: list[Hashable]
    _folded: network.Parameters
    _concepts: Tensor | None
    _facts: vision_block.Facts | None

    def _set_names(self, names: list[Hashable], old: int) -> None:
        self._names = names
        self.classes_, self.old_classes_ = _inputs.as_array(names), _inputs.as_array(names[:old])

    def logits(self, X: Any) -> Any:  # [N, C]
        """Cosines with the prototypes, [N, C], in the order of ``classes_``; a tensor for a tensor.

        Args:
            X: [N, D] student image features, a floating-point tensor or array; after a fit with ``model``
                those of the trained tower, as ``features`` gives them, or block inputs [N, L, T].

        Raises:
            ValueError: not fitted, another width, NaN or infinite rows.
        """
        found = self._logits("logits", X)
        return found if isinstance(X, Tensor) else found.cpu().numpy()

    def predict_proba(self, X: Any) -> Any:  # [N, C]
        """``softmax(logits/0.1)``, as in the training; a tensor for a tensor.

        Args:
            X: [N, D] as for ``logits``.

        Raises:
            ValueError: as ``logits``.
        """
        found = torch.softmax(self._logits("predict_proba", X) / STUDENT_TEMPERATURE, dim=1)
        return found if isinstance(X, Tensor) else found.cpu().numpy()

    def predict(self, X: Any) -> Any:
        """The class or cluster of every row; the first of equal ones wins.

        Args:
            X: [N, D] as for ``logits``.

        Returns:
            [N] names of ``classes_`` as an array, or an int64 tensor where the names are integers and X is a
            tensor.

        Raises:
            ValueError: as ``logits``.
        """
        found = self._logits("predict", X).argmax(dim=1)
        if isinstance(X, Tensor) and self.classes_.dtype.kind in "iu":
            return torch.from_numpy(self.classes_).to(found.device)[found]
        return self.classes_[found.cpu().numpy()]

    def score(self, X: Any, y: Any) -> float:
        """``gcd_accuracy(y, predict(X), old_classes_).all``: the assignment names the clusters.

        Args:
            X: [N, D] as for ``logits``.
            y: N true classes, of old and new ones.

        Raises:
            ImportError: SciPy is missing. ValueError: as ``logits``, or another number of labels.
        """
        return gcd_accuracy(y, self.predict(X), self.old_classes_).all

    def features(self, X: Any) -> Any:  # [N, D]
        """Image features of the tower with the trained block, not normalised; a tensor for a tensor.

        Args:
            X: [N, L, T] block inputs of one view, from ``cache_block_inputs``.

        Raises:
            ValueError: not fitted, or not with ``model=``; other tokens or another width, NaN or infinity.
        """
        if not hasattr(self, "classes_"):
            raise not_fitted(self)
        found = self._block_features("SpectralGCD.features", X)
        return found if isinstance(X, Tensor) else found.cpu().numpy()

    def _block_features(self, where: str, X: Any) -> Tensor:
        facts, p = self._facts, self._folded
        if facts is None:
            got, remedy = "one without", "pass features [N, D], or fit with model=..."
            raise ValueError(_errors.message(where, "the estimator", "have a trained block", got, remedy))
        x = block_inputs(where, X, vision_block.VisionBlock(p, p, facts))
        if x.dim() != 3:
            raise ValueError(_errors.message(where, "X", "be of one view", x, "pass X[0]"))
        dtype = compute_dtype(x.dtype)
        with exactly(x.device):
            p = {n: t.to(x.device, dtype) for n, t in p.items() if network.is_of_block(n)}
            parts = x.split(BLOCK_ROWS)
            return torch.cat([vision_block.features(p, facts, part.to(dtype)) for part in parts])

    def _logits(self, verb: str, X: Any) -> Tensor:
        where = f"SpectralGCD.{verb}"
        if not hasattr(self, "classes_"):
            raise not_fitted(self)
        if getattr(X, "ndim", 2) == 3:
            X = self._block_features(where, X)
        x = _inputs.features(where, "X", X, self.n_features_in_)
        dtype = compute_dtype(x.dtype)
        with exactly(x.device):
            folded = {n: p.to(x.device, dtype) for n, p in self._folded.items()}
            return torch.cat([network.predict_logits(folded, part.to(dtype)) for part in x.split(CHUNK)])

"""Estimators whose state is a sum over the shots: weights of shots, and shots that come in parts."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from semobridge_ext import _errors, _inputs
from semobridge_ext._parameters import check_feature_names, keep_feature_names
from semobridge_ext.fewshot.conventions import listed
from semobridge_ext.fewshot.estimator import FewShotEstimator, unchanged_on_error
from semobridge_ext.runtime.plain_modes import plain_modes

if TYPE_CHECKING:
    from typing_extensions import Self


class Growing(FewShotEstimator):
    """``fit`` and ``partial_fit`` in three steps: sums of nothing, shots added, the rest derived."""

    _sums = ""  # the attribute that holds the sums, and that an estimator from a file may lack

    def _open_sums(self, verb: str, labels: list[Hashable], x: Tensor, every: bool) -> Tensor:
        """Fixes the classes, sets every sum to nothing, and returns the encoded labels."""
        raise NotImplementedError

    def _add_to_sums(self, x: Tensor, codes: Tensor, weights: Tensor | None) -> None:
        """Adds shots; nothing of it fails."""
        raise NotImplementedError

    def _close_sums(self) -> None:
        """What prediction needs beside the sums, once every class has a shot."""

    def _answers_without_shots(self) -> bool:
        """Whether a class that waits for its first shot has an answer by its text."""
        return False

    def _weighted(
        self, verb: str, X: Any, y: Any, sample_weight: Any
    ) -> tuple[Tensor, list[Hashable], Tensor | None]:
        """Shots, labels and weights; a row of weight zero is no shot."""
        x, labels = self._support(verb, X, y)
        weights = _inputs.weights(f"{type(self).__name__}.{verb}", sample_weight, len(x))
        if weights is not None and not bool((weights > 0).all()):
            kept = (weights > 0).nonzero().flatten()
            x, labels = x[kept.to(x.device)], [labels[i] for i in kept.tolist()]
            weights = weights[kept]
        return x, labels, weights

    def _fit_sums(self, X: Any, y: Any, sample_weight: Any) -> Self:
        with unchanged_on_error(self):
            x, labels, weights = self._weighted("fit", X, y, sample_weight)
            codes = self._open_sums("fit", labels, x, True)
            self._add_to_sums(x, codes, weights)
            self._close_sums()
        return self

    @plain_modes()
    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> Self:
        """Adds shots; parts in any number give what ``fit`` gives for all of them, to rounding.

        Args:
            X: [M, D] raw image features, a floating-point tensor or array.
            y: M class names.
            classes: all class names, at the first call of an estimator without text; None: those of y.
                Later and with text they may be left out. Nothing is predicted while a class without text
                waits for its first shot.
            sample_weight: M weights of the shots, ≥ 0; None: all 1.

        Raises:
            ValueError: another width, a class that is not known, weights that do not fit, or an estimator
                from a file that holds no sums. The estimator is then as it was before.
        """
        with unchanged_on_error(self):
            x, codes, weights = self._part(X, y, classes, sample_weight)
            self._add_to_sums(x, codes, weights)
            seen = {self._names[i] for i in codes.tolist()}
            self._lacking = tuple(name for name in self._lacking if name not in seen)
            if self._answers_without_shots():
                self._lacking = ()
            if not self._lacking:
                self._close_sums()
        return self

    def _check_sums(self, verb: str) -> None:
        if not hasattr(self, self._sums):
            where, remedy = f"{type(self).__name__}.{verb}", "call fit(X, y) with all shots"
            got = "an estimator from a file without them"
            raise ValueError(_errors.message(where, "self", "hold its sums", got, remedy))

    def _part(self, X: Any, y: Any, classes: Any, sample_weight: Any) -> tuple[Tensor, Tensor, Tensor | None]:
        """One part of the shots, checked; the first part fixes the classes."""
        where, started = f"{type(self).__name__}.partial_fit", hasattr(self, "classes_")
        if started:
            self._check_sums("partial_fit")
            check_feature_names(self, where, X)
        x, labels, weights = self._weighted("partial_fit", X, y, sample_weight)
        names = None
        if classes is not None:  # their order counts for nothing, so a set is as good
            given = list(classes) if isinstance(classes, (set, frozenset)) else classes
            names = _inputs.ordered(_inputs.names(where, given, argument="classes"))
        if not started:
            self._first_classes = names
            codes = self._open_sums("partial_fit", labels, x, False)
            del self._first_classes
            keep_feature_names(self, X)
        else:
            _inputs.features(where, "X", x, self.n_features_in_)
            codes = self._codes("partial_fit", labels, len(x))
        if names is not None and names != self._names:
            contract, remedy = f"be the {len(self._names)} of this estimator", "leave them out"
            raise ValueError(_errors.message(where, "classes", contract, listed(names), remedy))
        return x, codes, weights


def weighted_sums(
    rows: Tensor,  # [M, D] float64
    codes: Tensor,  # [M] int64
    classes: int,
    weights: Tensor | None,  # [M] float64
) -> tuple[Tensor, Tensor]:  # [C, D], [C] float64
    """Sums of the rows of each class, and of their weights."""
    sums = torch.zeros(classes, rows.shape[1], dtype=torch.float64)
    if weights is None:
        counts = torch.bincount(codes, minlength=classes).double()
        return sums.index_add_(0, codes, rows), counts
    counts = torch.zeros(classes, dtype=torch.float64).index_add_(0, codes, weights)
    return sums.index_add_(0, codes, rows * weights.unsqueeze(1)), counts

"""The verbs that every few-shot estimator shares, in scikit-learn's conventions but without it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from semobridge_ext import _errors, _inputs, _numbers
from semobridge_ext._parameters import check_feature_names, keep_feature_names, real_parameters
from semobridge_ext.fewshot.conventions import Conventions, listed
from semobridge_ext.fewshot.conventions import NotFittedError as NotFittedError
from semobridge_ext.fewshot.conventions import not_fitted as not_fitted
from semobridge_ext.fewshot.draws import sample_support
from semobridge_ext.runtime.plain_modes import plain_modes
from semobridge_ext.runtime.rows import compute_dtype

if TYPE_CHECKING:
    from typing_extensions import Self


@contextmanager
def exactly(device: torch.device) -> Iterator[None]:
    """No gradients, and no autocast: similarities of 8 bits would blur what the classes differ in."""
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield


@contextmanager
def unchanged_on_error(estimator: Any) -> Iterator[None]:
    """A run that failed leaves the estimator as it was, fitted or not."""
    before = dict(estimator.__dict__)
    try:
        yield
    except BaseException:
        estimator.__dict__.clear()
        estimator.__dict__.update(before)
        raise


CHUNK = 4096  # rows whose [N, C] intermediates exist at once


class FewShotEstimator(Conventions):
    """Class names, predict and score on top of ``_logits`` and ``_labels``."""

    text_features: Any  # where a subclass takes text
    class_names: Any
    _text_rows: Tensor
    _first_classes: Sequence[Hashable] | None = None  # those of a first partial_fit, while it runs
    # What an error says of a label that is no class.
    _unknown = " without text or shots; fit with a shot of it, or leave its rows out"
    _needs_text = False  # whether nothing is left of the method without it
    _order: Tensor | None = None  # [C] where each class stands among the rows of text as given

    # -- shared pieces ------------------------------------------------------------------------------

    def _queries(self, verb: str, X: Any) -> Tensor:
        self._check_fitted()
        self._check_real(verb)
        where = f"{type(self).__name__}.{verb}"
        check_feature_names(self, where, X)
        return _inputs.features(where, "X", X, self.n_features_in_)

    def _support(self, verb: str, X: Any, y: Any) -> tuple[Tensor, list[Hashable]]:
        where = f"{type(self).__name__}.{verb}"
        self._check_numbers(verb)
        x = _inputs.features(where, "X", X)
        labels = _inputs.names(where, y, len(x))
        if verb == "fit":
            keep_feature_names(self, X)
        return x, labels

    def _support_beside_text(self, verb: str, X: Any, y: Any) -> tuple[Tensor, Tensor]:
        """Unit shots in float32 or float64 and their codes, for an estimator with text rows."""
        x, labels = self._support(verb, X, y)
        codes = self._set_text(verb, labels, x.shape[1])
        return normalize(x.to(compute_dtype(x.dtype)), dim=1), codes

    def _set_text(self, verb: str, labels: list[Hashable], width: int, every: bool = True) -> Tensor:
        """Classes and rows of text, which are zero without text; returns the encoded labels."""
        given = self.text_features
        self._check_text(verb)
        text = None if given is None else self._text(verb, given, width)
        rows = None if text is None else len(text)
        names = self._first_classes if given is None and self.class_names is None else self.class_names
        codes = self._set_classes(verb, labels, names, rows, every)
        zeros = torch.zeros(len(self._names), width, dtype=torch.float64)
        self._text_rows, self.n_features_in_ = zeros if text is None else self._sorted(text), width
        return codes

    def _check_text(self, verb: str) -> None:
        if self.text_features is None and self._needs_text:
            where, remedy = f"{type(self).__name__}.{verb}", "pass class text features, [C, D]"
            raise ValueError(_errors.message(where, "text_features", "be given", "none", remedy))

    def _set_classes(
        self, verb: str, labels: list[Hashable], class_names: Any, rows: int | None, every: bool = True
    ) -> Tensor:
        """Fixes ``classes_`` and returns the encoded labels; with `every` each class must have a shot.

        Class names: those given, else 0..C-1 where there are C rows of text, else what `y` holds. They are
        sorted, as scikit-learn's scores expect of ``classes_``; `_sorted` brings rows of text after them.
        Where `y` holds numbers of names instead of names, the numbers are the classes.
        """
        where = f"{type(self).__name__}.{verb}"
        if class_names is not None:
            classes = _inputs.names(where, class_names, argument="class_names")
        elif rows is not None:
            classes = list(range(rows))
        else:
            classes = _inputs.ordered(labels)
        if len(set(classes)) != len(classes):
            raise ValueError(f"{where}: class_names must be distinct, got repeated names; merge them")
        if rows is not None and len(classes) != rows:
            raise ValueError(
                f"{where}: class_names must name the {rows} rows of text_features, got {len(classes)} names; "
                "pass one name per row"
            )
        self._order = _inputs.order_of(classes)
        classes = _inputs.ordered(classes)
        if numbers_of_names(labels, classes):
            if self._order is not None:
                raise ValueError(
                    f"{where}: y must hold names of the classes, got numbers beside class_names in no sorted "
                    "order; sort class_names and the rows of text, as numbers of classes follow that order"
                )
            classes = list(range(len(classes)))
        codes = _inputs.encode(where, labels, classes, self._unknown)
        counts = torch.bincount(codes, minlength=len(classes))
        missing = [classes[i] for i in (counts == 0).nonzero().flatten().tolist()]
        if missing and every:
            raise ValueError(
                f"{where}: y must hold at least one shot of every class, got none of {listed(missing)}; "
                "leave these classes out, or keep a shot of each in every fold"
            )
        if len(classes) < 2:
            raise ValueError(f"{where}: y must hold at least two classes, got one class; add another")
        self._lacking = tuple(missing)
        self._names = classes
        self.classes_ = _inputs.as_array(classes)
        return codes

    def _sorted(self, rows: Tensor) -> Tensor:  # [C, ..]
        """One row per class, from the order of ``class_names`` to that of ``classes_``."""
        return rows if self._order is None else rows[self._order.to(rows.device)]

    def _check_real(self, verb: str) -> None:
        """Refuses what is no finite number where one is due: NaN would predict the first class of all."""
        mine: type = type(self)
        for name in real_parameters(mine):
            value = getattr(self, name)
            if type(value) is float and math.isfinite(value):
                continue
            where, remedy = f"{type(self).__name__}.{verb}", "set_params(...) takes one"
            if value is None and inspect.signature(type(self)).parameters[name].default is None:
                continue
            if not _numbers.is_real(value):
                contract, got = "be a number", _errors.describe(value)
                raise TypeError(_errors.message(where, name, contract, got, remedy))
            if not math.isfinite(value):
                raise ValueError(_errors.message(where, name, "be finite", value, remedy))

    def _check_numbers(self, verb: str) -> None:
        """The same, and all that a dictionary among the constructor's arguments holds."""
        self._check_real(verb)
        where = f"{type(self).__name__}.{verb}"
        for name, value in self.get_params().items():
            given = value if isinstance(value, dict) else {name: value}
            for part, number in given.items():
                if isinstance(number, (float, np.floating)) and not np.isfinite(number):
                    argument = name if part == name else f"{name}[{part!r}]"
                    remedy = "set_params(...) takes a number, and the default is one"
                    raise ValueError(_errors.message(where, argument, "be finite", number, remedy))

    def _text(self, verb: str, text_features: Any, width: int | None, what: str = "text_features") -> Tensor:
        """Text rows [C, D], finite and of the right width, normalised in float64."""
        where = f"{type(self).__name__}.{verb}"
        text = _inputs.features(where, what, text_features)
        if width is not None and text.shape[1] != width:
            remedy = "take both from the same model"
            raise ValueError(_errors.message(where, what, f"have width {width}", text, remedy))
        return normalize(text.to("cpu", torch.float64), dim=1)

    @plain_modes()
    def fit(self, X: Any, y: Any) -> Self:
        """Takes the shots.

        Args:
            X: [M, D] raw image features, a floating-point tensor or array.
            y: M class names.
        """
        raise NotImplementedError

    @plain_modes()
    def fit_seeds(
        self, X: Any, y: Any, *, shots: int, seeds: Sequence[int] = (0, 1, 2, 3, 4), **fit_arguments: Any
    ) -> list[Self]:
        """One fitted copy per seed, each on its own draw of ``shots`` per class from (X, y).

        For one seed the draws are nested in ``shots`` (see draws.sample_support). A class with fewer rows
        gives all it has.

        Args:
            X: [M, D] raw features of the training part alone, a floating-point tensor or array.
            y: M class names.
            shots: rows drawn per class.
            seeds: one fitted copy each.
            fit_arguments: go to every ``fit``.

        Raises:
            TypeError, ValueError: shots or seeds that are no counts; as ``fit``.
        """
        where = f"{type(self).__name__}.fit_seeds"
        _numbers.check_number(where, "shots", shots, least=1, whole=True, remedy="try 1, 2, 4 and 8")
        seeds = _numbers.whole_numbers(where, "seeds", seeds, "(0, 1, 2)")
        for seed in seeds:  # of RandomState
            remedy = "pass (0, 1, 2)"
            _numbers.check_number(where, "seeds", seed, least=0, most=2**32 - 1, whole=True, remedy=remedy)
        x, labels = self._support("fit_seeds", X, y)
        given = getattr(self, "class_names", None)
        names: list[Hashable] = _inputs.ordered(labels) if given is None else list(given)
        if numbers_of_names(labels, names):
            names = [*range(len(names))]
        codes = _inputs.encode(where, labels, names, self._unknown)
        fitted = []
        for seed in seeds:
            rows = sample_support(codes, shots, seed)
            copy = type(self)(**self.get_params())
            fitted.append(copy.fit(x[rows.to(x.device)], [labels[i] for i in rows.tolist()], **fit_arguments))
        return fitted

    # -- verbs --------------------------------------------------------------------------------------

    def _logits(self, x: Tensor) -> Tensor:  # [N, C]
        raise NotImplementedError

    def _labels(self, x: Tensor) -> Tensor:  # [N] int64
        parts = [self._logits(part).argmax(dim=1) for part in x.split(CHUNK)]
        return torch.cat(parts)

    def logits(self, X: Any) -> Any:  # [N, C]
        """One score per row and class, [N, C], whatever the number of classes; a tensor for a tensor.

        Args:
            X: [N, D] raw image features, a floating-point tensor or array.

        Raises:
            ValueError: not fitted, or another width.
        """
        x = self._queries("logits", X)
        with exactly(x.device):
            logits = self._logits(x)
        return logits if isinstance(X, Tensor) else logits.cpu().numpy()

    def decision_function(self, X: Any) -> Any:
        """[N, C] scores; with two classes [N], the second's minus the first's, as scikit-learn has it.

        Args:
            X: [N, D] raw image features, a floating-point tensor or array.

        Raises:
            ValueError: not fitted, or another width.
        """
        x = self._queries("decision_function", X)
        with exactly(x.device):
            logits = self._logits(x)
        if len(self.classes_) == 2:
            logits = logits[:, 1] - logits[:, 0]
        return logits if isinstance(X, Tensor) else logits.cpu().numpy()

    def predict(self, X: Any) -> Any:
        """The class of every row; the first of equal classes wins.

        Args:
            X: [N, D] raw image features, a floating-point tensor or array.

        Returns:
            [N] class names as an array, or an int64 tensor where the names are integers and X is a tensor.

        Raises:
            ValueError: not fitted, or another width.
        """
        x = self._queries("predict", X)
        with exactly(x.device):
            labels = self._labels(x)
        if isinstance(X, Tensor) and self.classes_.dtype.kind in "iu":
            return torch.from_numpy(self.classes_).to(labels.device)[labels]
        return self.classes_[labels.cpu().numpy()]

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """The fraction of rows whose class is predicted.

        Args:
            X: [N, D] raw image features, a floating-point tensor or array.
            y: N class names that were fitted.
            sample_weight: N weights of the rows, ≥ 0; None: all alike.

        Raises:
            ValueError: not fitted, another width, a class that was not fitted, or weights that do not fit.
        """
        right = self._right("score", X, y).double()
        weights = _inputs.weights(f"{type(self).__name__}.score", sample_weight, len(right))
        return float(right.mean() if weights is None else (right * weights).sum() / weights.sum())

    def _right(self, verb: str, X: Any, y: Any) -> Tensor:  # [N] bool
        """Which rows get the class that y names."""
        x = self._queries(verb, X)
        codes = self._codes(verb, y, len(x))
        with exactly(x.device):
            return self._labels(x).cpu() == codes

    def _codes(self, verb: str, y: Any, rows: int) -> Tensor:
        where = f"{type(self).__name__}.{verb}"
        return _inputs.encode(where, _inputs.names(where, y, rows), self._names, self._unknown)


def numbers_of_names(labels: Sequence[Hashable], names: Sequence[Hashable]) -> bool:
    """Whether labels are 0..C-1 beside names that are no numbers: scikit-learn's ensembles pass them so."""
    is_number = any(isinstance(name, (int, float)) for name in names)
    return not is_number and all(type(v) is int and 0 <= v < len(names) for v in labels)

"""What scikit-learn asks of an estimator, given without it; its own types are in `semobridge_ext.sklearn`."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from semobridge_ext import _errors
from semobridge_ext._parameters import Parameters, repr_of

# Keywords of every estimator's ``tune``.
TUNE = (
    "alphas", "batch", "fixed", "grid", "lrs", "n_trials", "penalties", "progress", "ranges", "redundant",
    "sampler", "seed",
)  # fmt: skip


class NotFittedError(ValueError, AttributeError):
    """The estimator was used before fit; scikit-learn's own class is raised where it is loaded."""


def _not_fitted(text: str) -> Exception:
    loaded = sys.modules.get("sklearn.exceptions")
    return (NotFittedError if loaded is None else loaded.NotFittedError)(text)


def not_fitted(estimator: Any) -> Exception:
    return _not_fitted(f"{type(estimator).__name__}: must be fitted first; call fit(X, y)")


class Absent:
    """In place of an inherited verb that a subclass does not have: ``hasattr`` says so."""

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: Any, owner: type) -> Any:
        raise AttributeError(f"{owner.__name__} has no {self.name}: {self.reason}")


class Conventions(Parameters):
    """A short repr, tags, and whether the estimator is fitted."""

    classes_: np.ndarray
    n_features_in_: int
    feature_names_in_: np.ndarray  # [D], where fit got a data frame with named columns
    _lacking: tuple[Any, ...] = ()  # classes that wait for a first shot; nothing is predicted before

    def __repr__(self) -> str:
        return repr_of(self, self._parameter_names())

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "classes_") and not self._lacking

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import ClassifierTags, InputTags, Tags, TargetTags

        return Tags(
            estimator_type="classifier",
            target_tags=TargetTags(required=True),
            transformer_tags=None,
            classifier_tags=ClassifierTags(),
            regressor_tags=None,
            input_tags=InputTags(),
        )

    def _check_unused(self, unused: Mapping[str, Any]) -> None:
        """What another estimator's ``tune`` takes may stand in the call; what none takes is a mistake."""
        for name in sorted(set(unused) - set(TUNE)):
            near = difflib.get_close_matches(name, TUNE, n=1)
            remedy = f"did you mean {near[0]}" if near else f"estimators take {', '.join(TUNE)}"
            got = f"{name}={_errors.describe(unused[name])}"
            contract = "be keywords of some estimator's tune"
            raise TypeError(_errors.message(f"{type(self).__name__}.tune", "unused", contract, got, remedy))

    def _check_fitted(self) -> None:
        if not hasattr(self, "classes_"):
            raise not_fitted(self)
        if self._lacking:
            raise _not_fitted(
                f"{type(self).__name__}: must get a shot of every class before this, got none of "
                f"{listed(self._lacking)} yet; call partial_fit(X, y) with theirs"
            )


def listed(names: Any) -> str:
    """The first of several class names, for an error."""
    first = list(names[:5])
    return f"{first}{' and others' if len(names) > 5 else ''}"

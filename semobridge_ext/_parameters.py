"""scikit-learn's conventions for constructor arguments and named columns, without scikit-learn."""

from __future__ import annotations

import inspect
import warnings
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from semobridge_ext import _numbers

if TYPE_CHECKING:
    from typing_extensions import Self

_SHOWN = 3  # of a list's items, in a repr
_NAMED = 5  # of the columns' names, in an error


@cache
def real_parameters(estimator: type) -> frozenset[str]:
    """The constructor's arguments that are real numbers, or None by default."""
    known = inspect.signature(estimator.__init__).parameters.values()  # type: ignore[misc]
    return frozenset(p.name for p in known if p.annotation in ("float", "float | None", float))


def plain_parameters(params: dict[str, Any]) -> dict[str, Any]:
    """Those that a file keeps: numbers, texts, true and false, None."""
    given = {name: _numbers.python(value) for name, value in params.items()}
    return {n: v for n, v in given.items() if isinstance(v, (bool, int, float, str, type(None)))}


class Parameters:
    """get_params and set_params over the arguments of the class's own constructor."""

    @classmethod
    def _parameter_names(cls) -> list[str]:
        return sorted(p for p in inspect.signature(cls.__init__).parameters if p != "self")

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's arguments, as they were given.

        Args:
            deep: scikit-learn's word; no argument holds an estimator, so it changes nothing.
        """
        return {name: getattr(self, name) for name in self._parameter_names()}

    def set_params(self, **params: Any) -> Self:
        """Replaces constructor arguments; what fit made stays until the next fit.

        Args:
            params: new values by name.

        Raises:
            ValueError: a name that the constructor does not take.
        """
        known = self._parameter_names()
        for name, value in params.items():
            if name not in known:
                raise ValueError(
                    f"Invalid parameter {name!r} for estimator {type(self).__name__}; "
                    f"valid parameters are: {known}"
                )
            setattr(self, name, value)
        return self


def repr_of(estimator: Any, names: list[str]) -> str:
    """The constructor's call, without what is there by default."""
    defaults = {n: p.default for n, p in inspect.signature(type(estimator).__init__).parameters.items()}
    parts = []
    for name in names:
        value, default = getattr(estimator, name), defaults[name]
        plain = isinstance(value, (str, int, float, np.generic))
        if value is default or (plain and default is not inspect.Parameter.empty and value == default):
            continue
        parts.append(f"{name}={shown(value)}")
    return f"{type(estimator).__name__}({', '.join(parts)})"


def shown(value: Any) -> str:
    """A value in a repr: the shape of an array, the class of a model, the first items of a long list."""
    if isinstance(value, (torch.Tensor, np.ndarray)) and value.ndim:
        return str(list(value.shape))
    if isinstance(value, torch.nn.Module):
        return type(value).__name__
    if isinstance(value, (np.generic, np.ndarray)):
        return repr(value.item())
    if isinstance(value, (list, tuple)):
        items = [shown(item) for item in value[:_SHOWN]]
        if len(value) > _SHOWN:
            items.append(f"… {len(value) - _SHOWN} more")
        text = ", ".join(items)
        return f"[{text}]" if isinstance(value, list) else f"({text}{',' * (len(value) == 1)})"
    return repr(value)


# -- named columns ------------------------------------------------------------------------------------


def feature_names(X: Any) -> np.ndarray | None:  # [D] of str
    """The names of a data frame's columns where all of them are strings."""
    columns = getattr(X, "columns", None)
    if columns is None or isinstance(X, torch.Tensor):
        return None
    names = list(columns)
    if not names or not all(isinstance(name, str) for name in names):
        return None
    found = np.empty(len(names), dtype=object)
    found[:] = names
    return found


def keep_feature_names(estimator: Any, X: Any) -> None:
    """Sets ``feature_names_in_`` of an estimator that is being fitted, or removes an older one."""
    names = feature_names(X)
    if names is not None:
        estimator.feature_names_in_ = names
    else:
        vars(estimator).pop("feature_names_in_", None)


def check_feature_names(estimator: Any, function: str, X: Any) -> None:
    """Refuses a data frame whose columns are not those of the fit; says so where one of both has none."""
    fitted, given = getattr(estimator, "feature_names_in_", None), feature_names(X)
    name = type(estimator).__name__
    if fitted is None and given is None:
        return
    if fitted is None:
        _warn(f"X has feature names, but {name} was fitted without feature names")
    elif given is None:
        if not isinstance(X, torch.Tensor):  # tensors have none to give
            _warn(f"X does not have valid feature names, but {name} was fitted with feature names")
    elif list(fitted) != list(given):
        unseen, missing = sorted({*given} - {*fitted}), sorted({*fitted} - {*given})
        text = "The feature names should match those that were passed during fit.\n"
        for title, names in (("unseen at fit time", unseen), ("seen at fit time, yet now missing", missing)):
            if names:
                rest = ["- ..."] if len(names) > _NAMED else []
                text += "\n".join([f"Feature names {title}:", *(f"- {n}" for n in names[:_NAMED]), *rest, ""])
        if not unseen and not missing:
            text += "Feature names must be in the same order as they were in fit.\n"
        raise ValueError(f"{function}: {text}Pass X with the columns of the fit, X[list(feature_names_in_)]")


def _warn(text: str) -> None:
    warnings.warn(text, UserWarning, stacklevel=5)

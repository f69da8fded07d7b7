"""Saving and loading for the estimators whose state is a few tensors and numbers."""

from __future__ import annotations

import inspect
import math
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from semobridge_ext import _inputs
from semobridge_ext._parameters import plain_parameters
from semobridge_ext._schema import Field, need, number, restoring
from semobridge_ext.fewshot.estimator import FewShotEstimator, exactly
from semobridge_ext.fewshot.estimator_file import load_estimator, save_estimator, sort_classes

if TYPE_CHECKING:
    from typing_extensions import Self

_LEAST = {"beta": 0.0, "beta_": 0.0, "ridge": 0.0, "ridge_": 0.0, "penalty_": 0.0}


class StoredEstimator(FewShotEstimator):
    """``save``/``load`` of the attributes that a class names, beside its plain parameters."""

    _numbers: tuple[str, ...] = ()  # attributes of plain numbers
    _later: ClassVar[dict[str, str]] = {}  # of these, what 0.1.0 did not write, and the parameter that it was
    _file: ClassVar[dict[str, Field]] = {}  # attributes that fit makes and save keeps; C classes, D features

    @classmethod
    def _format(cls) -> str:
        return f"semobridge-ext {cls.__name__} 1"

    def save(self, path: Any) -> None:
        """Writes a safetensors file with what prediction needs.

        Args:
            path: the file; it is replaced as a whole.

        Raises:
            ValueError: not fitted. OSError: the file cannot be written.
        """
        self._check_fitted()
        tensors = {name: getattr(self, name) for name in self._file}
        numbers = {name: getattr(self, name) for name in self._numbers}
        params = plain_parameters(self.get_params())
        fields = {"names": self._names, "numbers": numbers, "params": params, "width": self.n_features_in_}
        save_estimator(path, self._format(), {n: t for n, t in tensors.items() if t is not None}, fields)

    @classmethod
    def load(cls, path: Any) -> Self:
        """Reads what ``save`` wrote.

        Args:
            path: the file.

        Raises:
            FileNotFoundError: no such file. ValueError: a foreign or truncated file, which is named.
        """
        fields = ("names", "numbers", "params", "width")
        where = f"{cls.__name__}.load"
        tensors, values, sizes = load_estimator(where, path, cls._format(), cls._file, fields)
        with restoring(where, path):
            for name in ("numbers", "params"):
                need(where, path, isinstance(values[name], dict), f"{name} by name", values[name])
            need(where, path, values["width"] == sizes["D"], f"the width {sizes['D']}", values["width"])
            for name, parameter in cls._later.items():
                values["numbers"].setdefault(name, values["params"].get(parameter))
            values["numbers"] = {
                name: number(where, path, name, values["numbers"][name], _LEAST.get(name, -math.inf))
                for name in cls._numbers
            }
            cls._check_params(where, path, values["params"])
            return cls._restored(tensors, values)

    @classmethod
    def _check_params(cls, where: str, path: Any, params: dict[str, Any]) -> None:
        """Each of the kind of the constructor's default: a finite number, true or false, or a text.

        What is None by default is a number or None.
        """
        known = inspect.signature(cls).parameters
        for name, value in params.items():
            need(where, path, name in known, f"parameters of {cls.__name__}", name)
            default = known[name].default
            if isinstance(default, (bool, str)):
                need(where, path, type(value) is type(default), f"{type(default).__name__} as {name}", value)
            elif isinstance(default, (int, float)) or (default is None and value is not None):
                number(where, path, name, value, _LEAST.get(name, -math.inf))

    @classmethod
    def _restored(cls, tensors: dict[str, Tensor], values: dict[str, Any]) -> Self:
        by_class = ("_text_rows", "prototypes_", "coef_", "intercept_", "alpha_", "duals_", "residual_")
        sort_classes(tensors, values, by_class, "labels_")
        known = {n: v for n, v in values["params"].items() if n not in ("text_features", "class_names")}
        if "text_features" in cls._parameter_names():
            rows = tensors.get("_text_rows")  # all zero: there was no text
            known["text_features"] = rows if cls._needs_text or rows is None or bool(rows.any()) else None
        self = cls(**known)
        self._check_numbers("load")
        if known.get("text_features") is not None:
            self.class_names = values["names"]
        self._names, self.classes_ = values["names"], _inputs.as_array(values["names"])
        self.n_features_in_ = values["width"]
        for name in cls._file:
            setattr(self, name, tensors.get(name))
        for name, value in values["numbers"].items():
            setattr(self, name, value)
        return self

    def predict_proba(self, X: Any) -> Any:  # [N, C]
        """``softmax`` of the logits, which carry the model's own scale; not calibrated.

        Args:
            X: [N, D] raw image features, a floating-point tensor or array.

        Raises:
            ValueError: not fitted, or another width.
        """
        x = self._queries("predict_proba", X)
        with exactly(x.device):
            logits = self._logits(x)
            proba = torch.softmax(logits.double(), dim=1).to(logits.dtype)
        return proba if isinstance(X, Tensor) else proba.cpu().numpy()

"""Estimators of the door for checks that draw data of any width and any classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from semobridge_ext import sklearn as door


class _TextOfShots:
    """Each fit makes a text of its own shots, the means of the classes, as a model of their width would."""

    text_features: Any
    class_names: Any

    def fit(self, X: Any, y: Any) -> Any:
        before = {name: getattr(self, name) for name in ("text_features", "class_names", "image_projection")
                  if hasattr(self, name)}  # fmt: skip
        try:
            self._make(X, y)
            return super().fit(X, y)  # type: ignore[misc]
        finally:
            for name, value in before.items():
                setattr(self, name, value)

    def _make(self, X: Any, y: Any) -> None:
        """Of data that do not fit each other a text of nothing, so that fit meets them itself."""
        self.text_features = np.eye(2)
        if np.iscomplexobj(np.asarray(X)) or (np.asarray(y).dtype.kind == "f" and not np.isfinite(y).all()):
            return
        try:
            rows, labels = np.asarray(X, dtype=np.float64), np.asarray(y).ravel()
            names = np.unique(labels)
            text = np.stack([rows[labels == name].mean(axis=0) for name in names])
        except (TypeError, ValueError, IndexError):
            return
        if rows.ndim == 2 and rows.size and np.isfinite(text).all():
            self.text_features, self.class_names = text, names.tolist()
            if hasattr(self, "image_projection"):
                self.image_projection = torch.eye(rows.shape[1])


class APE(_TextOfShots, door.APE):
    """APE with a text of its shots."""


class APET(_TextOfShots, door.APET):
    """APE-T with a text of its shots."""


class ProLIP(_TextOfShots, door.ProLIP):
    """ProLIP with a text of its shots, from the identity."""


class ZeroShot(_TextOfShots, door.ZeroShot):
    """The nearest text, with a text of its shots."""


CLASSIFIERS = [
    door.SeMoBridgeClassifier("identity"),
    door.SeMoBridgeT("identity", losses={"text_projected": 0, "text_embedded": 0}, steps=3),
    door.TipAdapter(),
    door.TipAdapterF(epochs=2),
    APE(),
    APET(epochs=2),
    door.GDA(),
    door.ProKeR(),
    door.LPPlusPlus(steps=50),
    ProLIP(steps=3),
    ZeroShot(),
    door.NearestClassMean(),
    door.LDA(),
]
TRANSFORMERS = [
    door.Bridge("identity"),
    door.LinearMap("centering"),
    door.LinearMap("pca"),
    door.LinearMap("whitening"),
]
# Check → why it fails, by class; docs/guides/scikit_learn.md has the list.
EXPECTED: dict[str, dict[str, str]] = {}


def expected(estimator: Any) -> dict[str, str]:
    return EXPECTED.get(type(estimator).__name__, {})

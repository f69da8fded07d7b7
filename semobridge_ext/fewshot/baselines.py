"""Plain baselines that a report of this family must show beside it (docs/methods.md §6).

zero-shot            κ·norm(f)·tᵀ
nearest class mean   κ·norm(f)·F̄ᵀ,  F̄_c = norm(mean_k F_ck)
LDA                  x Σ⁻¹ μ_cᵀ − ½ μ_c Σ⁻¹ μ_cᵀ on x = norm(f),  Σ = (1−ρ)S + ρ·tr(S)/D·I
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from semobridge_ext._ops.blend_logits.eager import prototypes
from semobridge_ext._schema import Field
from semobridge_ext.fewshot.stored_estimator import StoredEstimator
from semobridge_ext.runtime.rows import compute_dtype


class ZeroShot(StoredEstimator):
    """CLIP's own classifier: the nearest text. ``fit`` takes no shots; labels given it are ignored.

    Args:
        text_features: [C, D] class text features, any length. class_names: C names; None: 0..C-1.
        logit_scale: κ, already exponentiated.

    Raises:
        ValueError: from ``fit``: NaN text, names that do not match its rows.

    Example:
        >>> import torch, semobridge_ext as sb
        >>> sb.ZeroShot(torch.eye(2), class_names=["cat", "dog"]).fit().predict([[0.1, 3.0]]).tolist()
        ['dog']
    """

    _file: ClassVar[dict[str, Field]] = {"_text_rows": Field(("C", "D"))}

    def __init__(
        self, text_features: Any, *, class_names: Sequence[Hashable] | None = None, logit_scale: float = 100.0
    ) -> None:
        self.text_features, self.class_names, self.logit_scale = text_features, class_names, logit_scale

    def fit(self, X: Any = None, y: Any = None) -> ZeroShot:
        """Fixes the classes from the text rows.

        Args:
            X: not looked at; scikit-learn's convention.
            y: not looked at.

        Raises:
            TypeError, ValueError: text rows or class names that do not fit each other.
        """
        self._check_numbers("fit")
        text = self._text("fit", self.text_features, None)
        labels: list[Hashable] = list(range(len(text)) if self.class_names is None else self.class_names)
        self._set_classes("fit", labels, self.class_names, len(text))
        self._text_rows, self.n_features_in_ = self._sorted(text), text.shape[1]
        return self

    def _logits(self, x: Tensor) -> Tensor:
        x = x.to(compute_dtype(x.dtype))
        return float(self.logit_scale) * normalize(x, dim=1) @ self._text_rows.to(x.device, x.dtype).T


class NearestClassMean(StoredEstimator):
    """The nearest prototype by cosine: the mean of a class's raw features, normalised.

    Args:
        logit_scale: κ, which only ``predict_proba`` feels.

    Raises:
        ValueError: from ``fit``: NaN features, fewer than two classes.

    Example:
        >>> import torch, semobridge_ext as sb
        >>> sb.NearestClassMean().fit([[2.0, 0.0], [0.0, 1.0]], ["a", "b"]).predict([[3.0, 1.0]]).tolist()
        ['a']
    """

    _file: ClassVar[dict[str, Field]] = {"prototypes_": Field(("C", "D"))}

    def __init__(self, *, logit_scale: float = 100.0) -> None:
        self.logit_scale = logit_scale

    def fit(self, X: Any, y: Any) -> NearestClassMean:
        """Takes the shots.

        Args:
            X: [M, D] raw image features, a floating-point tensor or array.
            y: M class names, any number of rows per class.

        Raises:
            TypeError, ValueError: features that are no finite floating-point rows, a class without a shot,
                fewer than two classes.
        """
        x, labels = self._support("fit", X, y)
        codes = self._set_classes("fit", labels, None, None)
        self.prototypes_ = prototypes(x.to("cpu", torch.float64), codes, len(self._names))
        self.n_features_in_ = x.shape[1]
        return self

    def _logits(self, x: Tensor) -> Tensor:
        x = x.to(compute_dtype(x.dtype))
        return float(self.logit_scale) * normalize(x, dim=1) @ self.prototypes_.to(x.device, x.dtype).T


class LDA(StoredEstimator):
    """Linear discriminant analysis on unit image features, equal priors, shrunk covariance.

    Args:
        shrinkage: ρ in [0, 1]; None: the oracle-approximating value (Chen et al. 2010), 1 where no
            class has two shots.

    Attributes: coef_ [C, D], intercept_ [C], shrinkage_.

    Raises:
        ValueError: from ``fit``: shrinkage outside of [0, 1], NaN features, fewer than two classes.

    Example:
        >>> import torch, semobridge_ext as sb
        >>> shots, names = [[2.0, 0.1], [2.0, -0.1], [0.1, 1.0], [-0.1, 1.0]], ["a", "a", "b", "b"]
        >>> sb.LDA(shrinkage=0.5).fit(shots, names).predict([[3.0, 1.0]]).tolist()
        ['a']
    """

    _numbers = ("shrinkage_",)
    _file: ClassVar[dict[str, Field]] = {"coef_": Field(("C", "D")), "intercept_": Field(("C",))}
    GRID = (0.01, 0.03, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.99, 1.0)

    def __init__(self, *, shrinkage: float | None = None) -> None:
        self.shrinkage = shrinkage

    def fit(self, X: Any, y: Any) -> LDA:
        """Takes the shots.

        Args:
            X: [M, D] raw image features, a floating-point tensor or array.
            y: M class names, any number of rows per class.

        Raises:
            TypeError, ValueError: features that are no finite floating-point rows, a class without a shot,
                fewer than two classes.
        """
        x, labels = self._support("fit", X, y)
        codes = self._set_classes("fit", labels, None, None)
        if self.shrinkage is not None and not 0 <= self.shrinkage <= 1:
            raise ValueError(f"LDA: shrinkage must lie in [0, 1], got {self.shrinkage}; None estimates it")
        unit, classes = normalize(x.to("cpu", torch.float64), dim=1), len(self._names)
        counts = torch.bincount(codes, minlength=classes).unsqueeze(1)
        means = torch.zeros(classes, unit.shape[1], dtype=torch.float64).index_add_(0, codes, unit) / counts
        rest = unit - means[codes]
        self.n_features_in_ = x.shape[1]
        self._moments = means, rest.T @ rest, max(1, len(unit) - classes)
        self._solve(self._estimate() if self.shrinkage is None else float(self.shrinkage))
        return self

    def _estimate(self) -> float:
        _, scatter, n = self._moments
        s, p = scatter / n, scatter.shape[0]
        trace, square = float(s.diagonal().sum()), float((s * s).sum())
        spread = square - trace**2 / p
        if spread <= 0:
            return 1.0
        return min(1.0, ((1 - 2 / p) * square + trace**2) / ((n + 1 - 2 / p) * spread))

    def _solve(self, rho: float) -> None:
        means, scatter, n = self._moments
        covariance, p = scatter / n, scatter.shape[0]
        # No spread within the classes (one shot each): the identity, which is the nearest mean.
        level = float(covariance.diagonal().mean()) or 1.0
        shrunk = (1 - rho) * covariance + rho * level * torch.eye(p, dtype=torch.float64)
        values, vectors = torch.linalg.eigh(shrunk)
        inverse = torch.where(values > 1e-12 * values[-1], 1 / values, 0.0)
        self.coef_ = (means @ vectors) * inverse @ vectors.T
        self.intercept_ = -0.5 * (self.coef_ * means).sum(dim=1)
        self.shrinkage_ = rho

    def tune(self, X: Any, y: Any, **unused: Any) -> LDA:
        """Takes the shrinkage of ``GRID`` with the best accuracy on validation data; the first best.

        Args:
            X: [N, D] raw validation features, a floating-point tensor or array.
            y: N class names that were fitted.
            unused: what other estimators' ``tune`` takes; ignored.

        Raises:
            ValueError: not fitted, another width, or a class that was not fitted.
        """
        x = self._queries("tune", X)
        codes = self._codes("tune", y, len(x))
        best = (-1.0, 0.0)
        for rho in self.GRID:
            self._solve(rho)
            accuracy = float((self._labels(x).cpu() == codes).double().mean())
            if accuracy > best[0]:
                best = accuracy, rho
        self._solve(best[1])
        return self

    def _logits(self, x: Tensor) -> Tensor:
        unit = normalize(x.to(compute_dtype(x.dtype)), dim=1)
        return unit @ self.coef_.to(x.device, unit.dtype).T + self.intercept_.to(x.device, unit.dtype)

"""Plain baselines that a report of this family must show beside it (docs/methods.md §6).

zero-shot            κ·norm(f)·tᵀ
nearest class mean   κ·norm(f)·F̄ᵀ,  F̄_c = norm(mean_k F_ck)
LDA                  x Σ⁻¹ μ_cᵀ − ½ μ_c Σ⁻¹ μ_cᵀ on x = norm(f),  Σ = (1−ρ)S + ρ·tr(S)/D·I
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from semobridge_ext import _inputs
from semobridge_ext._parameters import keep_feature_names
from semobridge_ext._schema import Field
from semobridge_ext.fewshot.estimator import numbers_of_names
from semobridge_ext.fewshot.growing import Growing, weighted_sums
from semobridge_ext.fewshot.moments import Moments
from semobridge_ext.fewshot.stored_estimator import StoredEstimator
from semobridge_ext.runtime.plain_modes import plain_modes
from semobridge_ext.runtime.rows import compute_dtype, unit_rows

if TYPE_CHECKING:
    from typing_extensions import Self


class ZeroShot(StoredEstimator):
    """CLIP's own classifier: the nearest text. ``fit`` takes no shots.

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
    _needs_text = True

    def __init__(
        self,
        text_features: Any = None,
        *,
        class_names: Sequence[Hashable] | None = None,
        logit_scale: float = 100.0,
    ) -> None:
        self.text_features, self.class_names, self.logit_scale = text_features, class_names, logit_scale

    @plain_modes()
    def fit(self, X: Any = None, y: Any = None) -> Self:
        """Fixes the classes from the text rows.

        Args:
            X: features of the text's width, or None; nothing is taken from them.
            y: class names, or None. Where all classes are there by their numbers, as scikit-learn's
                ensembles pass them, the numbers are the classes.

        Raises:
            TypeError, ValueError: text rows or class names that do not fit each other, or X that does not fit
                the text.
        """
        self._check_numbers("fit")
        self._check_text("fit")
        x, labels = (None, None) if X is None else self._looked_at(X, y)
        text = _inputs.features("ZeroShot.fit", "text_features", self.text_features)
        names = range(len(text)) if self.class_names is None else self.class_names
        given = _inputs.names("ZeroShot.fit", names, argument="class_names")
        numbers: list[Hashable] = list(range(len(given)))
        if labels is not None and set(labels) == set(numbers) and numbers_of_names(labels, given):
            given = numbers
        self._set_text("fit", given, text.shape[1] if x is None else x.shape[1])
        return self

    def _looked_at(self, X: Any, y: Any) -> tuple[Tensor, list[Hashable] | None]:
        if y is not None:
            return self._support("fit", X, y)
        keep_feature_names(self, X)
        return _inputs.features("ZeroShot.fit", "X", X), None

    def _logits(self, x: Tensor) -> Tensor:
        x = x.to(compute_dtype(x.dtype))
        return float(self.logit_scale) * normalize(x, dim=1) @ self._text_rows.to(x.device, x.dtype).T


class NearestClassMean(Growing, StoredEstimator):
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
    _sums = "_raw_sums"

    def __init__(self, *, logit_scale: float = 100.0) -> None:
        self.logit_scale = logit_scale

    @plain_modes()
    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Takes the shots.

        Args:
            X: [M, D] raw image features, a floating-point tensor or array.
            y: M class names, any number of rows per class.
            sample_weight: M weights of the shots, ≥ 0; None: all 1. A shot of weight 2 counts twice.

        Raises:
            TypeError, ValueError: features that are no finite floating-point rows, a class without a shot,
                fewer than two classes, weights that do not fit.
        """
        return self._fit_sums(X, y, sample_weight)

    def _open_sums(self, verb: str, labels: list[Hashable], x: Tensor, every: bool) -> Tensor:
        codes = self._set_classes(verb, labels, self._first_classes, None, every)
        self._raw_sums = torch.zeros(len(self._names), x.shape[1], dtype=torch.float64)
        self._counts = torch.zeros(len(self._names), dtype=torch.float64)
        self.n_features_in_ = x.shape[1]
        return codes

    def _add_to_sums(self, x: Tensor, codes: Tensor, weights: Tensor | None) -> None:
        rows = x.to("cpu", torch.float64)
        sums, counts = weighted_sums(rows, codes, len(self._names), weights)
        self._raw_sums, self._counts = self._raw_sums + sums, self._counts + counts

    def _close_sums(self) -> None:
        self.prototypes_ = unit_rows(self._raw_sums / self._counts.unsqueeze(1))

    def _logits(self, x: Tensor) -> Tensor:
        x = x.to(compute_dtype(x.dtype))
        return float(self.logit_scale) * normalize(x, dim=1) @ self.prototypes_.to(x.device, x.dtype).T


class LDA(Growing, StoredEstimator):
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
    _sums = "_moments"
    _file: ClassVar[dict[str, Field]] = {"coef_": Field(("C", "D")), "intercept_": Field(("C",))}
    GRID = (0.01, 0.03, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.99, 1.0)

    def __init__(self, *, shrinkage: float | None = None) -> None:
        self.shrinkage = shrinkage

    @plain_modes()
    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Takes the shots.

        Args:
            X: [M, D] raw image features, a floating-point tensor or array.
            y: M class names, any number of rows per class.
            sample_weight: M weights of the shots, ≥ 0; None: all 1. A shot of weight 2 counts twice.

        Raises:
            TypeError, ValueError: features that are no finite floating-point rows, a class without a shot,
                fewer than two classes, weights that do not fit.
        """
        return self._fit_sums(X, y, sample_weight)

    def _open_sums(self, verb: str, labels: list[Hashable], x: Tensor, every: bool) -> Tensor:
        if self.shrinkage is not None and not 0 <= self.shrinkage <= 1:
            raise ValueError(f"LDA: shrinkage must lie in [0, 1], got {self.shrinkage}; None estimates it")
        codes = self._set_classes(verb, labels, self._first_classes, None, every)
        self._moments, self._chosen = Moments(len(self._names), x.shape[1]), self.shrinkage
        self.n_features_in_ = x.shape[1]
        return codes

    def _add_to_sums(self, x: Tensor, codes: Tensor, weights: Tensor | None) -> None:
        self._moments = self._moments.added(x, codes, weights)

    def _close_sums(self) -> None:
        self._solve(self._estimate() if self._chosen is None else float(self._chosen))

    def _rest(self) -> float:
        """Degrees of freedom within the classes."""
        return max(1.0, self._moments.total - len(self._names))

    def _estimate(self) -> float:
        scatter, n = self._moments.scatter, self._rest()
        s, p = scatter / n, scatter.shape[0]
        trace, square = float(s.diagonal().sum()), float((s * s).sum())
        spread = square - trace**2 / p
        if spread <= 0:
            return 1.0
        return min(1.0, ((1 - 2 / p) * square + trace**2) / ((n + 1 - 2 / p) * spread))

    def _solve(self, rho: float) -> None:
        means, scatter, n = self._moments.means, self._moments.scatter, self._rest()
        covariance, p = scatter / n, scatter.shape[0]
        # No spread within the classes (one shot each): the identity, which is the nearest mean.
        level = float(covariance.diagonal().mean()) or 1.0
        shrunk = (1 - rho) * covariance + rho * level * torch.eye(p, dtype=torch.float64)
        values, vectors = torch.linalg.eigh(shrunk)
        inverse = torch.where(values > 1e-12 * values[-1], 1 / values, 0.0)
        self.coef_ = (means @ vectors) * inverse @ vectors.T
        self.intercept_ = -0.5 * (self.coef_ * means).sum(dim=1)
        self.shrinkage_ = rho

    @plain_modes()
    def tune(self, X: Any, y: Any, **unused: Any) -> Self:
        """Takes the shrinkage of ``GRID`` with the best accuracy on validation data; the first best.

        Args:
            X: [N, D] raw validation features, a floating-point tensor or array.
            y: N class names that were fitted.
            unused: what other estimators' ``tune`` takes; ignored. TypeError for what none takes.

        Raises:
            ValueError: not fitted, or loaded from a file, which holds no sums; another width, or a class that
                was not fitted.
        """
        self._check_unused(unused)
        x = self._queries("tune", X)
        codes = self._codes("tune", y, len(x))
        self._check_sums("tune")
        best = (-1.0, 0.0)
        for rho in self.GRID:
            self._solve(rho)
            accuracy = float((self._labels(x).cpu() == codes).double().mean())
            if accuracy > best[0]:
                best = accuracy, rho
        self._chosen = best[1]
        self._solve(best[1])
        return self

    def _logits(self, x: Tensor) -> Tensor:
        unit = normalize(x.to(compute_dtype(x.dtype)), dim=1)
        return unit @ self.coef_.to(x.device, unit.dtype).T + self.intercept_.to(x.device, unit.dtype)

"""GDA: Gaussian discriminant analysis beside the text logits, in closed form (arXiv 2402.04087).

    Σ⁻¹ = D·((M−1)Σ̂ + tr(Σ̂)·I)⁻¹,   Σ̂ = S/(M−1),   S = Σ_i (x_i − μ_{y_i})ᵀ(x_i − μ_{y_i})
    W = Σ⁻¹μ,   b = log(1/C) − ½·diag(μᵀΣ⁻¹μ),   logits = κ·x·tᵀ + α·(xW + b)

on unit rows x. The matrix that is inverted does not depend on α: one factor serves the whole search.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from semobridge_ext import _errors, _numbers
from semobridge_ext._schema import Field
from semobridge_ext.fewshot.estimator import CHUNK, exactly
from semobridge_ext.fewshot.growing import Growing
from semobridge_ext.fewshot.moments import Moments
from semobridge_ext.fewshot.stored_estimator import StoredEstimator
from semobridge_ext.runtime.plain_modes import plain_modes
from semobridge_ext.runtime.rows import compute_dtype

if TYPE_CHECKING:
    from typing_extensions import Self

# Of a unit row's square: what equal shots leave of their mean in float64 is rounding, no spread.
_NO_SPREAD = 1e-28


class GDA(Growing, StoredEstimator):
    """Text logits plus a Gaussian classifier of the shots with one covariance for all classes.

    ``κ·norm(f)·tᵀ + α·(norm(f)·W + b)``, nothing trained.

    Args:
        text_features: [C, D] class text features, any length; None: the Gaussians alone. class_names: C
            names; None: 0..C-1, without text what y holds.
        alpha: weight of the Gaussian classifier before ``tune``. logit_scale: κ.

    Attributes: coef_ [C, D] float64, the rows of Wᵀ; intercept_ [C] float64; alpha_.

    Raises:
        TypeError, ValueError: from ``fit``: NaN features, widths that differ, labels without text.

    Numerics: class means, scatter and its Cholesky factor in float64 on the CPU, whatever the dtype of the
        shots; the condition of the matrix is at most the number of shots, so that the published
        pseudo-inverse is its inverse. Where no class has two different shots Σ̂ is zero and so is its
        pseudo-inverse: the text alone answers, as the published formula has it.

    Memory: O(D² + C·D) beside the shots, which are read twice in blocks of 4096 rows, and looked through for
        NaN once, at a byte a value. Means and scatter stay for ``partial_fit`` and are not saved.

    Example:
        >>> import torch, semobridge_ext as sb
        >>> shots, names = [[2.0, 0.1], [2.0, -0.1], [0.1, 1.0], [-0.1, 1.0]], ["a", "a", "b", "b"]
        >>> clf = sb.GDA(torch.ones(2, 2), class_names=["a", "b"])
        >>> clf.fit(shots, names).predict([[3.0, 1.0]]).tolist()
        ['a']

    Paper: A Hard-to-Beat Baseline for Training-free CLIP-based Adaptation, arXiv 2402.04087.
    """

    _numbers = ("alpha_",)
    _sums = "_moments"
    _file: ClassVar[dict[str, Field]] = {
        "_text_rows": Field(("C", "D")),
        "coef_": Field(("C", "D")),
        "intercept_": Field(("C",)),
    }
    ALPHAS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2)

    def __init__(
        self,
        text_features: Any = None,  # [C, D]
        *,
        class_names: Sequence[Hashable] | None = None,
        alpha: float = 1.0,
        logit_scale: float = 100.0,
    ) -> None:
        self.text_features, self.class_names = text_features, class_names
        self.alpha, self.logit_scale = alpha, logit_scale

    @plain_modes()
    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Takes the shots; augmented copies of an image count as further shots.

        Args:
            X: [M, D] raw image features, a floating-point tensor or array.
            y: M class names of the text rows, any number of rows per class.
            sample_weight: M weights of the shots, ≥ 0; None: all 1. A shot of weight 2 counts twice.

        Raises:
            TypeError, ValueError: features that are no finite floating-point rows, a class without a shot,
                a label without text, widths that differ, weights that do not fit or add up to no more than 1.
        """
        return self._fit_sums(X, y, sample_weight)

    def _weighted(
        self, verb: str, X: Any, y: Any, sample_weight: Any
    ) -> tuple[Tensor, list[Hashable], Tensor | None]:
        x, labels, weights = super()._weighted(verb, X, y, sample_weight)
        before = self._moments.total if verb == "partial_fit" and hasattr(self, "_moments") else 0.0
        if weights is not None and before + float(weights.sum()) <= 1:
            got, remedy = f"{before + float(weights.sum()):g}", "a weight counts as that many shots"
            contract = "add up to more than 1, as the covariance is over their sum less 1"
            raise ValueError(_errors.message(f"GDA.{verb}", "sample_weight", contract, got, remedy))
        return x, labels, weights

    def _open_sums(self, verb: str, labels: list[Hashable], x: Tensor, every: bool) -> Tensor:
        codes = self._set_text(verb, labels, x.shape[1], every)
        self._moments = Moments(len(self._names), x.shape[1])
        self.alpha_ = float(self.alpha)
        return codes

    def _add_to_sums(self, x: Tensor, codes: Tensor, weights: Tensor | None) -> None:
        with exactly(x.device):
            self._moments = self._moments.added(x, codes, weights)

    def _close_sums(self) -> None:
        means = self._moments.means
        self.coef_ = _solve(means, self._moments.scatter.clone(), self._moments.total)
        self.intercept_ = -0.5 * (self.coef_ * means).sum(dim=1) - math.log(len(means))

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor]:  # [N, C] each
        """The logits of the text and those of the Gaussians."""
        unit = normalize(x.to(compute_dtype(x.dtype)), dim=1)
        text, coef = (m.to(x.device, unit.dtype) for m in (self._text_rows, self.coef_))
        gauss = torch.addmm(self.intercept_.to(x.device, unit.dtype), unit, coef.T)
        return float(self.logit_scale) * unit @ text.T, gauss

    def _logits(self, x: Tensor) -> Tensor:
        text, gauss = self._parts(x)
        return text.add_(gauss, alpha=self.alpha_)

    @plain_modes()
    def tune(self, X: Any, y: Any, *, alphas: Sequence[float] | None = None, **unused: Any) -> Self:
        """Takes the α of a grid with the best accuracy on validation data; the first best.

        One pass over the data serves all of them.

        Args:
            X: [N, D] raw validation features, a floating-point tensor or array.
            y: N class names that were fitted.
            alphas: what is tried; None: the published ``ALPHAS``, 1e-4 … 1e2.
            unused: what other estimators' ``tune`` takes; ignored. TypeError for what none takes.

        Raises:
            ValueError: not fitted, another width, a class that was not fitted, or no finite α to try.
        """
        self._check_unused(unused)
        x = self._queries("tune", X)
        codes = self._codes("tune", y, len(x))
        tried = _numbers.real_numbers(
            "GDA.tune",
            "alphas",
            self.ALPHAS if alphas is None else alphas,
            "hold finite numbers",
            "None: ALPHAS",
        )
        right = [0] * len(tried)
        with exactly(x.device):
            for part, want in zip(x.split(CHUNK), codes.to(x.device).split(CHUNK), strict=True):
                text, gauss = self._parts(part)
                both = torch.empty_like(text)
                for i, alpha in enumerate(tried):
                    torch.add(text, gauss, alpha=alpha, out=both)
                    right[i] += int((both.argmax(dim=1) == want).sum())
        self.alpha_ = tried[right.index(max(right))]
        return self


def _solve(means: Tensor, scatter: Tensor, rows: float) -> Tensor:  # [C, D]
    """μ Σ⁻¹; the scatter is overwritten."""
    trace = float(scatter.trace())
    if trace <= _NO_SPREAD * rows:
        return torch.zeros_like(means)
    scatter.diagonal().add_(trace / (rows - 1))
    return scatter.shape[0] * torch.cholesky_solve(means.T, torch.linalg.cholesky(scatter)).T

"""APE, training-free (arXiv 2304.01195).

    logits = κ·norm(f)·tᵀ + α·Σ_{s: y_s = c} w_s·exp(−β(1 − ⟨q, k_s⟩))

q and the keys keep the best channels, w_s = exp(γ·D_s) with D_s = log2((1+ε)/(p_s,y+ε)) and
p_s = softmax(k_s·tᵀ).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from semobridge_ext._ops.support_logits.op import support_logits
from semobridge_ext._schema import SUMS, WHOLE, Field
from semobridge_ext.fewshot import published
from semobridge_ext.fewshot.ape_channels import Refined
from semobridge_ext.fewshot.cache_search import Found, Keys
from semobridge_ext.fewshot.caches import TipAdapter
from semobridge_ext.fewshot.estimator import unchanged_on_error
from semobridge_ext.fewshot.published import Grid
from semobridge_ext.runtime.plain_modes import plain_modes

if TYPE_CHECKING:
    from typing_extensions import Self


class APE(Refined):
    """APE, training-free: the cache keeps the channels that tell classes apart, weighted by its fit.

    Args:
        text_features, class_names, alpha, beta, logit_scale: as in TipAdapter.
        channels: how many to keep; None: half of them. A data set's name of the authors' files, such as
            "caltech101": the published number, which is one of RN50's 1024 channels, as a share of any width,
            with the published w0 and w1 in place of these.
        w0, w1: of the inter-class product and of the variance.
        gamma: sharpness of the cache weights before ``tune``.

    Attributes: channels_ [d] kept, weights_ [S], gamma_ beside TipAdapter's.

    Raises:
        ValueError: from ``fit``: NaN features, widths that differ, labels without text.

    Example:
        >>> import torch, semobridge_ext as sb
        >>> clf = sb.APE(torch.eye(2), class_names=["a", "b"])
        >>> clf.fit(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), ["a", "b"]).predict([[3.0, 1.0]]).tolist()
        ['a']
    """

    _numbers: tuple[str, ...] = ("alpha_", "beta_", "gamma_")
    _later: ClassVar[dict[str, str]] = {"gamma_": "gamma"}
    _file: ClassVar[dict[str, Field]] = TipAdapter._file | {
        "keys_": Field(("S", "d"), SUMS),
        "weights_": Field(("S",), SUMS),
        "channels_": Field(("d",), WHOLE, bound="D"),
    }
    _selections = published.APE_CHANNELS
    GAMMAS = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6)

    def __init__(
        self,
        text_features: Any = None,
        *,
        class_names: Sequence[Hashable] | None = None,
        alpha: float = 1.17,
        beta: float = 1.0,
        gamma: float = 0.1,
        logit_scale: float = 100.0,
        channels: int | str | None = None,
        w0: float = 0.7,
        w1: float = 0.3,
    ) -> None:
        super().__init__(
            text_features, class_names=class_names, alpha=alpha, beta=beta, logit_scale=logit_scale
        )
        self.gamma, self.channels, self.w0, self.w1 = gamma, channels, w0, w1

    @plain_modes()
    def fit(self, X: Any, y: Any) -> Self:  # type: ignore[override]  # no weights
        """Takes the shots.

        Args:
            X: [M, D] raw image features, a floating-point tensor or array.
            y: M class names of the text rows, any number of rows per class.

        Raises:
            TypeError, ValueError: features that are no finite floating-point rows, a class without a shot,
                a label without text, widths that differ.
        """
        with unchanged_on_error(self):
            super().fit(X, y)
            self.channels_ = self._choose(self.keys_, self.labels_)
            self.keys_ = normalize(self.keys_[:, self.channels_.to(self.keys_.device)], dim=1)
            self.gamma_ = float(self.gamma)
            self.weights_ = torch.exp(self.gamma_ * self._divergence())
        return self

    def _divergence(self) -> Tensor:  # [S]
        """D_s of every key, from the kept channels alone."""
        assert self.channels_ is not None
        small = normalize(self._text_rows[:, self.channels_.to(self._text_rows.device)], dim=1)
        keys, labels = self.keys_, self.labels_.unsqueeze(1)
        p = torch.softmax(keys @ small.to(keys.device, keys.dtype).T, dim=1).gather(1, labels).squeeze(1)
        return torch.log2((1 + 1e-6) / (p + 1e-6))

    def _small(self, unit: Tensor) -> Tensor:
        assert self.channels_ is not None
        return normalize(unit[:, self.channels_.to(unit.device)], dim=1)

    def _cache(self, unit: Tensor, beta: float) -> Tensor:
        small, classes = self._small(unit), len(self._names)
        return support_logits(small, self.keys_, self.labels_, classes, beta=beta, weights=self.weights_)

    # -- the search ---------------------------------------------------------------------------------

    def _grid(self, given: Any) -> Grid:
        if given is None:
            return Grid(self.BETAS, self.ALPHAS, self.GAMMAS)
        return published.grid_of(f"{type(self).__name__}.tune", given, published.APE, True)

    def _searched(self, gammas: tuple[float, ...]) -> Keys:
        values = torch.tensor(gammas, dtype=self.keys_.dtype, device=self.keys_.device).unsqueeze(1)
        weights = torch.exp(values * self._divergence())  # [G, S]
        return Keys(self.keys_, self.labels_, len(self._names), weights, self._small)

    def _present(self, correct: int) -> Found:
        return Found(correct, self.alpha_, self.beta_, self.gamma_)

    def _take(self, found: Found) -> None:
        super()._take(found)
        assert found.gamma is not None
        if found.gamma != self.gamma_:
            self.gamma_, self.weights_ = found.gamma, torch.exp(found.gamma * self._divergence())

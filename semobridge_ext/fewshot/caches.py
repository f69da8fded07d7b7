"""Cache models: Tip-Adapter, Tip-Adapter-F (arXiv 2111.03930) and APE (arXiv 2304.01195).

    logits = κ·norm(f)·tᵀ + α·Σ_{s: y_s = c} w_s·exp(−β(1 − ⟨q, k_s⟩))

Tip-Adapter: q = norm(f), keys = unit shots, w = 1. Tip-Adapter-F trains the keys. APE: q and keys keep
the best channels, w_s = exp(γ·D_s) with D_s = log2((1+ε)/(p_s,y+ε)), p_s = softmax(k_s·tᵀ).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from semobridge_ext import _errors
from semobridge_ext._ops.support_logits.op import support_logits
from semobridge_ext._schema import WHOLE, Field
from semobridge_ext.fewshot.estimator import CHUNK
from semobridge_ext.fewshot.stored_estimator import StoredEstimator


class TipAdapter(StoredEstimator):
    """Tip-Adapter: text logits plus a cache of the shots, nothing trained.

    Args:
        text_features: [C, D]. class_names: C names; None: 0..C-1.
        alpha, beta: weight and sharpness of the cache before ``tune``. logit_scale: κ.

    Attributes: keys_ [S, D], labels_ [S], alpha_, beta_.

    Raises:
        ValueError: from ``fit``: NaN features, widths that differ, labels without text.

    Example:
        >>> import torch, semobridge_ext as sb
        >>> clf = sb.TipAdapter(torch.eye(2), class_names=["a", "b"])
        >>> clf.fit(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), ["a", "b"]).predict([[3.0, 1.0]]).tolist()
        ['a']
    """

    _numbers: tuple[str, ...] = ("alpha_", "beta_")
    _file: ClassVar[dict[str, Field]] = {
        "_text_rows": Field(("C", "D")),
        "keys_": Field(("S", "D")),
        "labels_": Field(("S",), WHOLE, bound="C"),
        "weights_": Field(("S",), optional=True),
        "channels_": Field(("d",), WHOLE, bound="D", optional=True),
    }
    _text_rows: Tensor
    weights_: Tensor | None = None
    channels_: Tensor | None = None
    ALPHAS = tuple(0.1 * 1.25**i for i in range(20))  # 0.1 .. 6.9
    BETAS = tuple(0.1 * 1.3**i for i in range(20))  # 0.1 .. 14.6

    def __init__(
        self,
        text_features: Any,
        *,
        class_names: Sequence[Hashable] | None = None,
        alpha: float = 1.17,
        beta: float = 1.0,
        logit_scale: float = 100.0,
    ) -> None:
        self.text_features, self.class_names = text_features, class_names
        self.alpha, self.beta, self.logit_scale = alpha, beta, logit_scale

    def fit(self, X: Any, y: Any) -> Any:
        """Takes the shots.

        Args:
            X: [M, D] raw image features, a floating-point tensor or array.
            y: M class names of the text rows, any number of rows per class.

        Raises:
            TypeError, ValueError: features that are no finite floating-point rows, a class without a shot,
                a label without text, widths that differ.
        """
        self.keys_, self.labels_ = self._support_beside_text("fit", X, y)
        self.labels_ = self.labels_.to(self.keys_.device)
        self.alpha_, self.beta_ = float(self.alpha), float(self.beta)
        return self

    def _unit(self, x: Tensor) -> Tensor:
        return normalize(x.to(self.keys_.device, self.keys_.dtype), dim=1)

    def _text_logits(self, unit: Tensor) -> Tensor:
        return float(self.logit_scale) * unit @ self._text_rows.to(unit.device, unit.dtype).T

    def _cache(self, unit: Tensor, beta: float) -> Tensor:
        return support_logits(unit, self.keys_, self.labels_, len(self._names), beta=beta)

    def _logits(self, x: Tensor) -> Tensor:
        unit = self._unit(x)
        return self._text_logits(unit) + self.alpha_ * self._cache(unit, self.beta_)

    def tune(self, X: Any, y: Any, **unused: Any) -> Any:
        """Takes α and β of a grid (``ALPHAS``, ``BETAS``) with the best validation accuracy.

        The first best is kept; the present pair is looked at first.

        Args:
            X: [N, D] raw validation features, a floating-point tensor or array.
            y: N class names that were fitted.
            unused: what other estimators' ``tune`` takes; ignored.

        Raises:
            ValueError: not fitted, another width, or a class that was not fitted.
        """
        x = self._queries("tune", X)
        codes = self._codes("tune", y, len(x))
        start = int((self._labels(x).cpu() == codes).sum())
        best: tuple[int, float, float] = (start, self.alpha_, self.beta_)
        unit = [self._unit(part) for part in x.split(CHUNK)]
        text = torch.cat([self._text_logits(part) for part in unit])
        for beta in self.BETAS:
            cache = torch.cat([self._cache(part, beta) for part in unit])
            for alpha in self.ALPHAS:
                right = int(((text + alpha * cache).argmax(dim=1).cpu() == codes).sum())
                if right > best[0]:
                    best = right, alpha, beta
        self.alpha_, self.beta_ = best[1:]
        return self


class TipAdapterF(TipAdapter):
    """Tip-Adapter-F: the keys are trained, through the differentiable ``support_logits``.

    Args:
        text_features, class_names, alpha, beta, logit_scale: as in TipAdapter.
        epochs, lr, batch_size: 20, 1e-3 (cosine to 0; AdamW, eps 1e-4), 256.
        seed: of the shuffling.

    Attributes: losses_ [steps] beside TipAdapter's.

    Raises:
        ValueError: from ``fit``: NaN features, widths that differ, labels without text.

    Example:
        >>> import torch, semobridge_ext as sb
        >>> clf = sb.TipAdapterF(torch.eye(2), class_names=["a", "b"])
        >>> clf.fit(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), ["a", "b"]).predict([[3.0, 1.0]]).tolist()
        ['a']
    """

    def __init__(
        self,
        text_features: Any,
        *,
        class_names: Sequence[Hashable] | None = None,
        alpha: float = 1.17,
        beta: float = 1.0,
        logit_scale: float = 100.0,
        epochs: int = 20,
        lr: float = 1e-3,
        batch_size: int = 256,
        seed: int = 0,
    ) -> None:
        super().__init__(
            text_features, class_names=class_names, alpha=alpha, beta=beta, logit_scale=logit_scale
        )
        self.epochs, self.lr, self.batch_size, self.seed = epochs, lr, batch_size, seed

    def fit(self, X: Any, y: Any) -> Any:
        """Takes the shots as cache and as training data.

        Args:
            X: [M, D] raw image features, a floating-point tensor or array.
            y: M class names of the text rows, any number of rows per class.

        Raises:
            TypeError, ValueError: features that are no finite floating-point rows, a class without a shot,
                a label without text, widths that differ.
        """
        super().fit(X, y)
        x = self.keys_
        keys = x.clone().requires_grad_()
        optimizer = torch.optim.AdamW([keys], lr=self.lr, eps=1e-4)
        steps = self.epochs * -(-len(x) // self.batch_size)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
        generator, losses = torch.Generator().manual_seed(self.seed), []
        with torch.enable_grad():
            for _ in range(self.epochs):
                for rows in torch.randperm(len(x), generator=generator).split(self.batch_size):
                    rows = rows.to(x.device)
                    cache = support_logits(x[rows], keys, self.labels_, len(self._names), beta=self.beta_)
                    logits = self._text_logits(x[rows]) + self.alpha_ * cache
                    loss = cross_entropy(logits, self.labels_[rows])
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    schedule.step()
                    losses.append(loss.detach())
        found = torch.stack(losses).cpu() if losses else torch.zeros(0)
        if not bool(torch.isfinite(found).all() & torch.isfinite(keys).all()):
            wild = (~torch.isfinite(found)).nonzero()
            got = f"NaN or infinity at step {int(wild[0]) + 1 if len(wild) else len(found)} of {len(found)}"
            remedy = f"lower lr={self.lr:g}, alpha={self.alpha:g} or logit_scale={self.logit_scale:g}"
            raise ValueError(_errors.message("TipAdapterF.fit", "the loss", "stay finite", got, remedy))
        self.keys_, self.losses_ = keys.detach(), found
        return self


class APE(TipAdapter):
    """APE, training-free: the cache keeps the channels that tell classes apart, weighted by its fit.

    Args:
        text_features, class_names, alpha, beta, logit_scale: as in TipAdapter.
        channels: how many to keep; None: half of them. w0, w1: of the inter-class product and of the
            variance. gamma: sharpness of the cache weights; ``tune`` leaves these as they are.

    Attributes: channels_ [d] kept, weights_ [S] beside TipAdapter's.

    Raises:
        ValueError: from ``fit``: NaN features, widths that differ, labels without text.

    Example:
        >>> import torch, semobridge_ext as sb
        >>> clf = sb.APE(torch.eye(2), class_names=["a", "b"])
        >>> clf.fit(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), ["a", "b"]).predict([[3.0, 1.0]]).tolist()
        ['a']
    """

    _file: ClassVar[dict[str, Field]] = TipAdapter._file | {
        "keys_": Field(("S", "d")),
        "weights_": Field(("S",)),
        "channels_": Field(("d",), WHOLE, bound="D"),
    }

    def __init__(
        self,
        text_features: Any,
        *,
        class_names: Sequence[Hashable] | None = None,
        alpha: float = 1.17,
        beta: float = 1.0,
        gamma: float = 0.1,
        logit_scale: float = 100.0,
        channels: int | None = None,
        w0: float = 0.7,
        w1: float = 0.3,
    ) -> None:
        super().__init__(
            text_features, class_names=class_names, alpha=alpha, beta=beta, logit_scale=logit_scale
        )
        self.gamma, self.channels, self.w0, self.w1 = gamma, channels, w0, w1

    def fit(self, X: Any, y: Any) -> Any:
        """Takes the shots.

        Args:
            X: [M, D] raw image features, a floating-point tensor or array.
            y: M class names of the text rows, any number of rows per class.

        Raises:
            TypeError, ValueError: features that are no finite floating-point rows, a class without a shot,
                a label without text, widths that differ.
        """
        super().fit(X, y)
        text, width = self._text_rows, self.n_features_in_
        kept = max(1, width // 2) if self.channels is None else self.channels
        if not 1 <= kept <= width:
            raise ValueError(f"APE: channels must lie in 1..{width}, got {kept}; None keeps half")
        score = ape_scores(text, self.keys_.to("cpu", torch.float64), self.labels_.cpu(), self.w0, self.w1)
        self.channels_ = score.topk(kept).indices.sort().values
        keys = normalize(self.keys_[:, self.channels_.to(self.keys_.device)], dim=1)
        small = normalize(text[:, self.channels_], dim=1).to(keys.device, keys.dtype)
        p = torch.softmax(keys @ small.T, dim=1).gather(1, self.labels_.unsqueeze(1)).squeeze(1)
        self.weights_ = torch.exp(self.gamma * torch.log2((1 + 1e-6) / (p + 1e-6)))
        self.keys_ = keys
        return self

    def _cache(self, unit: Tensor, beta: float) -> Tensor:
        assert self.channels_ is not None
        small = normalize(unit[:, self.channels_.to(unit.device)], dim=1)
        return support_logits(
            small, self.keys_, self.labels_, len(self._names), beta=beta, weights=self.weights_
        )


def ape_scores(
    text: Tensor,  # [C, D] unit rows
    shots: Tensor,  # [S, D] unit rows
    labels: Tensor,  # [S] int64
    w0: float = 0.7,
    w1: float = 0.3,
) -> Tensor:  # [D]
    """APE's channel scores, ``−w0·(mean inter-class product) + w1·var(text)``, in O(C·K·D).

    With s_c the sum of a class's rows (text and shots) and S = Σ_c s_c, the products over pairs of
    different classes sum to ``S⊙S − Σ_c s_c⊙s_c``; any number of shots per class.
    """
    classes = len(text)
    sums = text.clone().index_add_(0, labels, shots)
    counts = 1.0 + torch.bincount(labels, minlength=classes).double()
    pairs = counts.sum() ** 2 - (counts**2).sum()
    total = sums.sum(dim=0)
    return -w0 * (total * total - (sums * sums).sum(dim=0)) / pairs + w1 * text.var(dim=0)

"""APE-T, the trained APE (arXiv 2304.01195).

    logits = κ·norm(f)·(t + R)ᵀ + α·Σ_{s: y_s = c} w_s·exp(−β(1 − ⟨norm(f), k_s + R_c⟩))

R [C, d], one row a class on the d best channels, starts at 0 and w at 1; both are trained on the shots.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor
from torch.nn.functional import cross_entropy

from semobridge_ext._ops.support_logits.op import support_logits
from semobridge_ext._schema import SUMS, WHOLE, Field
from semobridge_ext.fewshot import published
from semobridge_ext.fewshot.ape_channels import Refined
from semobridge_ext.fewshot.cache_training import CacheTraining, Settings
from semobridge_ext.fewshot.caches import TipAdapter
from semobridge_ext.fewshot.estimator import unchanged_on_error
from semobridge_ext.runtime.plain_modes import plain_modes

if TYPE_CHECKING:
    from typing_extensions import Self


class APET(Refined):
    """APE-T: a residual per class and channel, added to text and keys, and a weight per key, are trained.

    Args:
        text_features, class_names, alpha, beta, logit_scale: as in TipAdapter.
        channels: as in APE, whose table for training has its own numbers; chosen by the texts alone.
        w0, w1: as in APE.
        epochs, lr, batch_size: 20, 1e-4 (cosine to 0; AdamW, eps 1e-3, weight decay 0.1), 256.
        seed: of the shuffling. checkpoint_every: epochs between writes of ``fit``'s checkpoint.
        progress: a progress bar on stderr.

    Attributes: channels_ [d], residual_ [C, d], keys_ [S, D] with the residual in them, weights_ [S],
        losses_ [steps] beside TipAdapter's.

    Raises:
        ValueError: from ``fit``: NaN features, widths that differ, labels without text.

    Numerics: float32 (float64 for float64 features), where the authors' program trains half precision. Text
        and keys are not normalised again, as in theirs.

    Example:
        >>> import torch, semobridge_ext as sb
        >>> clf = sb.APET(torch.eye(2), class_names=["a", "b"])
        >>> clf.fit(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), ["a", "b"]).predict([[3.0, 1.0]]).tolist()
        ['a']
    """

    _file: ClassVar[dict[str, Field]] = TipAdapter._file | {
        "weights_": Field(("S",), SUMS),
        "channels_": Field(("d",), WHOLE, bound="D"),
        "residual_": Field(("C", "d")),
        "losses_": Field(("L",)),
    }
    _selections = published.APET_CHANNELS
    residual_: Tensor
    losses_: Tensor

    def __init__(
        self,
        text_features: Any = None,
        *,
        class_names: Sequence[Hashable] | None = None,
        alpha: float = 1.17,
        beta: float = 1.0,
        logit_scale: float = 100.0,
        channels: int | str | None = None,
        w0: float = 0.2,
        w1: float = 0.8,
        epochs: int = 20,
        lr: float = 1e-4,
        batch_size: int = 256,
        seed: int = 0,
        checkpoint_every: int = 1,
        progress: bool = False,
    ) -> None:
        super().__init__(
            text_features, class_names=class_names, alpha=alpha, beta=beta, logit_scale=logit_scale
        )
        self.channels, self.w0, self.w1 = channels, w0, w1
        self.epochs, self.lr, self.batch_size, self.seed = epochs, lr, batch_size, seed
        self.checkpoint_every, self.progress = checkpoint_every, progress

    @plain_modes()
    def fit(self, X: Any, y: Any, *, checkpoint: Any = None) -> Self:  # type: ignore[override]  # no weights
        """Takes the shots as cache and as training data.

        Args:
            X: [M, D] raw image features, a floating-point tensor or array.
            y: M class names of the text rows, any number of rows per class.
            checkpoint: as in TipAdapterF.fit.

        Raises:
            TypeError, ValueError: features that are no finite floating-point rows, a class without a shot,
                a label without text, widths that differ, a checkpoint of another run, a loss that diverged.
                The estimator is then as it was before.
        """
        with unchanged_on_error(self):
            super().fit(X, y)
            self._train(checkpoint)
        return self

    def _train(self, checkpoint: Any) -> None:
        x, labels, classes = self.keys_, self.labels_, len(self._names)
        self.channels_ = self._choose(x[:0], labels[:0])
        self.residual_ = x.new_zeros(classes, len(self.channels_))
        weights = x.new_ones(len(x))

        def loss(rows: Tensor) -> Tensor:
            keys = x + self._residual_rows()[labels]
            cache = support_logits(x[rows], keys, labels, classes, beta=self.beta_, weights=weights)
            return cross_entropy(self._text_logits(x[rows]) + self.alpha_ * cache, labels[rows])

        settings = Settings(self.epochs, self.lr, 1e-3, 0.1, self.batch_size, self.seed)
        remedy = f"lower lr={self.lr:g}, alpha={self.alpha:g} or logit_scale={self.logit_scale:g}"
        trained = {"residual": self.residual_, "weights": weights}
        run = CacheTraining("APET", trained, loss, len(x), settings, remedy)
        facts = {
            "alpha": self.alpha_, "beta": self.beta_, "logit_scale": float(self.logit_scale), "X": x,
            "y": labels, "text_features": self._text_rows, "channels": self.channels_,
        }  # fmt: skip
        self.losses_ = run.run(checkpoint, self.checkpoint_every, facts, self.progress)
        self.keys_, self.weights_ = x + self._residual_rows()[labels], weights

    def _residual_rows(self) -> Tensor:  # [C, D]
        """The residual among all channels."""
        assert self.channels_ is not None
        wide = self.residual_.new_zeros(len(self.residual_), self.n_features_in_)
        return wide.index_copy(1, self.channels_.to(wide.device), self.residual_)

    def _text_logits(self, unit: Tensor) -> Tensor:
        text = self._text_rows.to(unit.device, unit.dtype) + self._residual_rows().to(unit.device, unit.dtype)
        return float(self.logit_scale) * unit @ text.T

    def _cache(self, unit: Tensor, beta: float) -> Tensor:
        return support_logits(
            unit, self.keys_, self.labels_, len(self._names), beta=beta, weights=self.weights_
        )

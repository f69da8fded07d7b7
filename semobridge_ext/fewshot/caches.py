"""Cache models: Tip-Adapter and Tip-Adapter-F (arXiv 2111.03930).

    logits = κ·norm(f)·tᵀ + α·Σ_{s: y_s = c} exp(−β(1 − ⟨norm(f), k_s⟩))

Tip-Adapter: keys = unit shots. Tip-Adapter-F trains them.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from semobridge_ext import _numbers
from semobridge_ext._ops.support_logits.op import support_logits
from semobridge_ext._schema import SUMS, WHOLE, Field
from semobridge_ext.fewshot import published
from semobridge_ext.fewshot.cache_search import Found, Keys, search
from semobridge_ext.fewshot.cache_training import CacheTraining, Settings
from semobridge_ext.fewshot.conventions import Absent
from semobridge_ext.fewshot.estimator import CHUNK, exactly, unchanged_on_error
from semobridge_ext.fewshot.growing import Growing
from semobridge_ext.fewshot.published import Grid
from semobridge_ext.fewshot.stored_estimator import StoredEstimator
from semobridge_ext.runtime.plain_modes import plain_modes
from semobridge_ext.runtime.rows import compute_dtype

if TYPE_CHECKING:
    from typing_extensions import Self

_REACH = 60.0  # exp of it, times any number of keys, is a float32


class TipAdapter(Growing, StoredEstimator):
    """Tip-Adapter: text logits plus a cache of the shots, nothing trained.

    Args:
        text_features: [C, D]; None: the cache alone. class_names: C names; None: 0..C-1, without text what y
            holds.
        alpha, beta: weight and sharpness of the cache before ``tune``. logit_scale: κ.

    Attributes: keys_ [S, D], labels_ [S], weights_ [S] or None, alpha_, beta_.

    Raises:
        ValueError: from ``fit``: NaN features, widths that differ, labels without text.

    ``partial_fit`` appends shots. A class that waits for its first is told by its text alone.

    Example:
        >>> import torch, semobridge_ext as sb
        >>> clf = sb.TipAdapter(torch.eye(2), class_names=["a", "b"])
        >>> clf.fit(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), ["a", "b"]).predict([[3.0, 1.0]]).tolist()
        ['a']
    """

    _numbers: tuple[str, ...] = ("alpha_", "beta_")
    _sums = "keys_"
    _file: ClassVar[dict[str, Field]] = {
        "_text_rows": Field(("C", "D")),
        "keys_": Field(("S", "D"), SUMS),
        "labels_": Field(("S",), WHOLE, bound="C"),
        "weights_": Field(("S",), SUMS, optional=True),
        "channels_": Field(("d",), WHOLE, bound="D", optional=True),
    }
    _text_rows: Tensor
    weights_: Tensor | None = None
    channels_: Tensor | None = None
    # Beyond where picks fall: up to 5600 and 200 where a text says little (docs/guides/cache_models.md).
    ALPHAS = tuple(0.1 * 1.5**i for i in range(30))  # 0.1 .. 12783
    BETAS = tuple(0.1 * 1.4**i for i in range(25))  # 0.1 .. 321

    def __init__(
        self,
        text_features: Any = None,
        *,
        class_names: Sequence[Hashable] | None = None,
        alpha: float = 1.17,
        beta: float = 1.0,
        logit_scale: float = 100.0,
    ) -> None:
        self.text_features, self.class_names = text_features, class_names
        self.alpha, self.beta, self.logit_scale = alpha, beta, logit_scale

    @plain_modes()
    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Takes the shots.

        Args:
            X: [M, D] raw image features, a floating-point tensor or array.
            y: M class names of the text rows, any number of rows per class.
            sample_weight: M weights of the shots' kernel values, ≥ 0; None: all 1.

        Raises:
            TypeError, ValueError: features that are no finite floating-point rows, a class without a shot,
                a label without text, widths that differ, weights that do not fit.
        """
        return self._fit_sums(X, y, sample_weight)

    def _open_sums(self, verb: str, labels: list[Hashable], x: Tensor, every: bool) -> Tensor:
        where, remedy = f"{type(self).__name__}.{verb}", "tune(...) searches it"
        _numbers.check_number(where, "beta", self.beta, least=0, remedy=remedy)
        codes = self._set_text(verb, labels, x.shape[1], every)
        dtype = compute_dtype(x.dtype)
        self.keys_ = torch.empty(0, x.shape[1], dtype=dtype, device=x.device)
        self.labels_ = torch.empty(0, dtype=torch.int64, device=x.device)
        self.weights_ = None
        self.alpha_, self.beta_ = float(self.alpha), float(self.beta)
        return codes

    def _add_to_sums(self, x: Tensor, codes: Tensor, weights: Tensor | None) -> None:
        before, keys = len(self.keys_), self.keys_
        if weights is not None or self.weights_ is not None:
            old = keys.new_ones(before) if self.weights_ is None else self.weights_
            own = keys.new_ones(len(x)) if weights is None else weights.to(keys.device, keys.dtype)
            self.weights_ = torch.cat([old, own])
        unit = normalize(x.to(keys.device, keys.dtype), dim=1)
        self.keys_ = torch.cat([keys, unit]) if before else unit
        self.labels_ = torch.cat([self.labels_, codes.to(keys.device)])

    def _answers_without_shots(self) -> bool:
        return self.text_features is not None

    def _unit(self, x: Tensor) -> Tensor:
        return normalize(x.to(self.keys_.device, self.keys_.dtype), dim=1)

    def _text_logits(self, unit: Tensor) -> Tensor:
        return float(self.logit_scale) * unit @ self._text_rows.to(unit.device, unit.dtype).T

    def _cache(self, unit: Tensor, beta: float) -> Tensor:
        return support_logits(
            unit, self.keys_, self.labels_, len(self._names), beta=beta, weights=self.weights_
        )

    def _logits(self, x: Tensor) -> Tensor:
        unit = self._unit(x)
        return self._text_logits(unit) + self.alpha_ * self._cache(unit, self.beta_)

    # -- the search ---------------------------------------------------------------------------------

    def _grid(self, given: Any) -> Grid:
        if given is None:
            return Grid(self.BETAS, self.ALPHAS)
        return published.grid_of(f"{type(self).__name__}.tune", given, published.TIP_ADAPTER, False)

    def _searched(self, gammas: tuple[float, ...]) -> Keys:
        weights = None if self.weights_ is None else self.weights_.detach().reshape(1, -1)
        return Keys(self.keys_, self.labels_, len(self._names), weights, lambda unit: unit)

    def _present(self, correct: int) -> Found:
        return Found(correct, self.alpha_, self.beta_, None)

    def _take(self, found: Found) -> None:
        self.alpha_, self.beta_ = found.alpha, found.beta

    def _finite(self, grid: Grid) -> Grid:
        """Without the β at which trained keys, longer than 1, would take a sum out of float32."""
        beyond = float(self.keys_.norm(dim=1).max()) - 1
        return grid._replace(betas=tuple(beta for beta in grid.betas if beta * beyond < _REACH))

    @plain_modes()
    def tune(self, X: Any, y: Any, *, grid: Any = None, progress: bool = False, **unused: Any) -> Self:
        """Takes the values of a grid with the best validation accuracy.

        Args:
            X: [N, D] raw validation features, a floating-point tensor or array.
            y: N class names that were fitted.
            grid: None: the class's own (``BETAS``, ``ALPHAS``, and for APE ``GAMMAS``); the values before the
                search are looked at first and kept unless one is better. A data set's name of the
                authors' files ("imagenet", "caltech101", "dtd", "eurosat", "fgvc", "food101",
                "oxford_flowers", "oxford_pets", "stanford_cars", "sun397", "ucf101"), or the largest β and α
                (and for APE γ) of another one: the authors' grid, of which the first best is kept. They
                searched ImageNet on the very images that they tested on.
            progress: a progress bar on stderr.
            unused: what other estimators' ``tune`` takes; ignored. TypeError for what none takes.

        Raises:
            ValueError: not fitted, another width, a class that was not fitted, or an unknown grid.

        Numerics: one pass over [N, C] bounds the α that classify a row rightly, for any number of α; the
            counts are those of float64 sums of the same logits.
        """
        values = self._finite(self._grid(grid))
        self._check_unused(unused)
        x = self._queries("tune", X)
        codes = self._codes("tune", y, len(x))
        with exactly(x.device):
            parts = []
            for part, own in zip(x.split(CHUNK), codes.split(CHUNK), strict=True):
                unit = self._unit(part)
                parts.append((unit, self._text_logits(unit), own.to(unit.device)))
            start = None
            if grid is None:
                start = self._present(int((self._labels(x).cpu() == codes).sum()))
            self._take(search(values, parts, self._searched(values.gammas), start, progress))
        return self


class TipAdapterF(TipAdapter):
    """Tip-Adapter-F: the keys are trained, through the differentiable ``support_logits``.

    Args:
        text_features, class_names, alpha, beta, logit_scale: as in TipAdapter.
        epochs, lr, batch_size: 20, 1e-3 (cosine to 0; AdamW, eps 1e-4), 256.
        seed: of the shuffling. checkpoint_every: epochs between writes of ``fit``'s checkpoint.
        progress: a progress bar on stderr.

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
        text_features: Any = None,
        *,
        class_names: Sequence[Hashable] | None = None,
        alpha: float = 1.17,
        beta: float = 1.0,
        logit_scale: float = 100.0,
        epochs: int = 20,
        lr: float = 1e-3,
        batch_size: int = 256,
        seed: int = 0,
        checkpoint_every: int = 1,
        progress: bool = False,
    ) -> None:
        super().__init__(
            text_features, class_names=class_names, alpha=alpha, beta=beta, logit_scale=logit_scale
        )
        self.epochs, self.lr, self.batch_size, self.seed = epochs, lr, batch_size, seed
        self.checkpoint_every, self.progress = checkpoint_every, progress

    partial_fit = Absent("its keys are trained on all shots at once")  # type: ignore[assignment]

    @plain_modes()
    def fit(self, X: Any, y: Any, *, checkpoint: Any = None) -> Self:  # type: ignore[override]  # no weights
        """Takes the shots as cache and as training data.

        Args:
            X: [M, D] raw image features, a floating-point tensor or array.
            y: M class names of the text rows, any number of rows per class.
            checkpoint: a file that is written during training, and continued from where it exists, with the
                very steps of an unbroken run. It depends on the shots in their order, text, settings and
                the package's version; checkpoint_every and progress may change.

        Raises:
            TypeError, ValueError: features that are no finite floating-point rows, a class without a shot,
                a label without text, widths that differ, a checkpoint of another run, a loss that diverged.
                The estimator is then as it was before.
        """
        with unchanged_on_error(self):
            self._train(X, y, checkpoint)
        return self

    def _train(self, X: Any, y: Any, checkpoint: Any) -> None:
        super().fit(X, y)
        x, keys = self.keys_, self.keys_.clone()

        def loss(rows: Tensor) -> Tensor:
            cache = support_logits(x[rows], keys, self.labels_, len(self._names), beta=self.beta_)
            return cross_entropy(self._text_logits(x[rows]) + self.alpha_ * cache, self.labels_[rows])

        settings = Settings(self.epochs, self.lr, 1e-4, 0.01, self.batch_size, self.seed)
        remedy = f"lower lr={self.lr:g}, alpha={self.alpha:g} or logit_scale={self.logit_scale:g}"
        run = CacheTraining("TipAdapterF", {"keys": keys}, loss, len(x), settings, remedy)
        self.losses_ = run.run(checkpoint, self.checkpoint_every, self._facts(x), self.progress)
        self.keys_ = keys

    def _facts(self, x: Tensor) -> dict[str, Any]:
        """What the training depends on beside its settings."""
        return {
            "alpha": self.alpha_, "beta": self.beta_, "logit_scale": float(self.logit_scale), "X": x,
            "y": self.labels_, "text_features": self._text_rows,
        }  # fmt: skip

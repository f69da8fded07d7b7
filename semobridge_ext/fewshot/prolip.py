"""ProLIP: the vision projection alone is trained, held to where it began (arXiv 2410.05270).

    L(P) = mean cross-entropy of κ·norm(xP)·tᵀ + λ·‖P − P₀‖²_F

on image features x before the projection. Full batch, Adam with ε = 1e-4, rate lr·½(1 + cos(πk/steps)).
With u = norm(xP) and p the softmax, the gradient is

    ∂L/∂u = κ/M·(p − y)·t,   ∂L/∂(xP) = (∂u − u⟨u, ∂u⟩)/‖xP‖,   ∂L/∂P = xᵀ·∂(xP) + 2λ(P − P₀)
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from semobridge_ext import _errors, _numbers
from semobridge_ext._schema import Field
from semobridge_ext.fewshot.estimator import CHUNK, exactly, unchanged_on_error
from semobridge_ext.fewshot.stored_estimator import StoredEstimator
from semobridge_ext.fewshot.training_checks import check_losses
from semobridge_ext.runtime import adamw, products
from semobridge_ext.runtime.plain_modes import plain_modes
from semobridge_ext.runtime.rows import compute_dtype

if TYPE_CHECKING:
    from typing_extensions import Self

_EPS = 1e-4  # Adam's, the authors'


class ProLIP(StoredEstimator):
    """The nearest text after a vision projection that is trained on the shots.

    Args:
        image_projection: [V, D] the model's own projection P₀, any float dtype, or a CLIP model that has one
            (``clip.image_projection`` says which do); not changed.
        text_features: [C, D] class text features, any length. class_names: C names; None: 0..C-1.
        penalty: λ; None: 1 over the mean number of shots per class, the published choice without
            validation data.
        lr: rate before ``tune``, which replaces λ too. steps: of the training. logit_scale: κ.
        progress: a progress bar on stderr.

    Attributes: projection_ [V, D]; penalty_; lr_; losses_ [steps] before each step.

    Raises:
        TypeError, ValueError: from ``fit``: a matrix or features that do not fit, NaN, labels without text.

    Features are those before the projection, ``clip.encode_image(model, images, project=False)``, for ``fit``
    and every other verb: ``n_features_in_`` is V.

    Numerics: float32 (float64 for float64 shots), gradients by hand, deterministic.

    Memory: 7·V·D for the projection, its gradient and Adam's moments, M·(V + 4·D + 2·C) for the shots and one
        step; the shots stay until the next ``fit``, for ``tune``, and are not saved.

    Example:
        >>> import torch, semobridge_ext as sb
        >>> clf = sb.ProLIP(torch.eye(3, 2), torch.eye(2), class_names=["a", "b"], steps=5)
        >>> shots = torch.tensor([[2.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
        >>> clf.fit(shots, ["a", "b"]).predict([[3.0, 1.0, 0.5]]).tolist()
        ['a']

    Paper: CLIP's Visual Embedding Projector is a Few-shot Cornucopia, arXiv 2410.05270.
    """

    _numbers = ("penalty_", "lr_")
    _needs_text = True
    _file: ClassVar[dict[str, Field]] = {
        "_text_rows": Field(("C", "E")),
        "projection_": Field(("D", "E")),
        "start_": Field(("D", "E")),
    }
    LRS = (1e-4, 1e-3)
    PENALTIES = (1.0, 0.1, 0.01)

    def __init__(
        self,
        image_projection: Any = None,  # [V, D], or a CLIP model
        text_features: Any = None,  # [C, D]
        *,
        class_names: Sequence[Hashable] | None = None,
        penalty: float | None = None,
        lr: float = 1e-5,
        steps: int = 300,
        logit_scale: float = 100.0,
        progress: bool = False,
    ) -> None:
        self.image_projection, self.text_features = image_projection, text_features
        self.class_names, self.penalty, self.lr = class_names, penalty, lr
        self.steps, self.logit_scale, self.progress = steps, logit_scale, progress

    @plain_modes()
    def fit(self, X: Any, y: Any) -> Self:
        """Trains on the shots.

        Args:
            X: [M, V] image features before the projection, a floating-point tensor or array.
            y: M class names of the text rows, any number of rows per class.

        Raises:
            TypeError, ValueError: features that are no finite floating-point rows, a projection of another
                width, a class without a shot, a label without text, a loss that diverged. The estimator
                is then as it was.
        """
        where = "ProLIP.fit"
        self._check_numbers("fit")
        if not _numbers.is_whole(self.steps) or self.steps < 0:
            contract = "be a whole number from 0 up"
            raise ValueError(_errors.message(where, "steps", contract, self.steps, "the default is 300"))
        if self.lr <= 0:
            raise ValueError(_errors.message(where, "lr", "be > 0", self.lr, "the default is 1e-5"))
        if self.penalty is not None and self.penalty < 0:
            remedy = "None takes one over the shots per class"
            raise ValueError(_errors.message(where, "penalty", "be ≥ 0 or None", self.penalty, remedy))
        with unchanged_on_error(self):
            self._check_text("fit")
            x, labels = self._support("fit", X, y)
            self.start_ = self._matrix(where, x.shape[1])
            text = self._text("fit", self.text_features, self.start_.shape[1])
            codes = self._set_classes("fit", labels, self.class_names, len(text))
            self._text_rows, self.n_features_in_ = self._sorted(text), x.shape[1]
            self.penalty_ = len(text) / len(x) if self.penalty is None else float(self.penalty)
            self._shots = x.to(compute_dtype(x.dtype)), codes.to(x.device)
            with exactly(x.device):
                self._keep(float(self.lr), self.penalty_, *self._train(float(self.lr), self.penalty_))
        return self

    def _matrix(self, where: str, width: int) -> Tensor:  # [V, D]
        given = self.image_projection
        if isinstance(given, nn.Module):
            from semobridge_ext.clip import image_projection

            given = image_projection(given)
        start = _errors.check_float_tensor(where, "image_projection", given).detach().clone()
        if start.dim() != 2 or start.shape[0] != width:
            remedy = "X are features before the projection: clip.encode_image(model, images, project=False)"
            contract = f"have a row for each of the {width} columns of X"
            raise ValueError(_errors.message(where, "image_projection", contract, start, remedy))
        _errors.check_finite(where, "image_projection", start, "take the matrix as the model has it")
        return start

    def _train(self, lr: float, penalty: float) -> tuple[Tensor, Tensor]:
        """The projection [V, D] behind the last step, and the losses [steps]."""
        from tqdm import tqdm

        x, codes = self._shots
        start, text = (m.to(x.device, x.dtype) for m in (self.start_, self._text_rows))
        projection, first, second = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
        losses, own = x.new_empty(self.steps), codes.unsqueeze(1)
        scale, minus = float(self.logit_scale), x.new_full((1, 1), -1.0).expand_as(own)
        for step in tqdm(range(self.steps), desc="train", disable=not self.progress):
            unit = products.product(x, projection)
            length = torch.linalg.vector_norm(unit, dim=1, keepdim=True).clamp_(min=1e-12)
            unit.div_(length)
            log = torch.log_softmax(products.product(scale * unit, text.T), dim=1)
            away = projection - start
            losses[step] = penalty * away.square().sum() - log.gather(1, own).mean()
            slope = products.product(log.exp_().scatter_add_(1, own, minus).mul_(scale / len(x)), text)
            slope.sub_(unit.mul_((unit * slope).sum(dim=1, keepdim=True))).div_(length)
            grad = away.mul_(2 * penalty)
            products.add_product(grad, x.T, slope)
            rate, root = adamw.corrections(lr * 0.5 * (1 + math.cos(math.pi * step / self.steps)), step + 1)
            adamw.update(projection, grad, first, second, keep=1.0, rate=rate, root=root, eps=_EPS)
        return projection, losses.cpu()

    def _keep(self, lr: float, penalty: float, projection: Tensor, losses: Tensor) -> None:
        remedy = f"lower lr={lr:g} or logit_scale={self.logit_scale:g}"
        check_losses("ProLIP.fit", losses, (projection,), remedy)
        self.lr_, self.penalty_, self.projection_, self.losses_ = lr, penalty, projection, losses

    @plain_modes()
    def tune(
        self,
        X: Any,
        y: Any,
        *,
        lrs: Sequence[float] | None = None,
        penalties: Sequence[float] | None = None,
        **unused: Any,
    ) -> Self:
        """Trains once per rate and λ and keeps the pair with the best validation accuracy; the first best.

        Args:
            X: [N, V] validation features before the projection, a floating-point tensor or array.
            y: N class names that were fitted.
            lrs, penalties: what is tried, rates outside; None: ``LRS`` and ``PENALTIES``, a part of the
                authors' 1e-2 … 1e-8 and 10 … 1e-4, 0. A pair whose loss diverges is passed over.
            unused: what other estimators' ``tune`` takes; ignored. TypeError for what none takes.

        Raises:
            ValueError: not fitted, or loaded from a file, which holds no shots; another width, a class that
                was not fitted, nothing to try, or nothing that converges.
        """
        self._check_unused(unused)
        x = self._queries("tune", X)
        codes = self._codes("tune", y, len(x))
        where = "ProLIP.tune"
        rates = _numbers.real_numbers(
            where, "lrs", self.LRS if lrs is None else lrs, "hold finite rates > 0", "None: LRS", above=0
        )
        weights = _numbers.real_numbers(
            where,
            "penalties",
            self.PENALTIES if penalties is None else penalties,
            "hold finite numbers ≥ 0",
            "None: PENALTIES",
            least=0,
        )
        if not hasattr(self, "_shots"):
            got = "an estimator from a file, which holds no shots"
            raise ValueError(_errors.message(where, "self", "hold its shots", got, "call fit(X, y)"))
        best, found = -1, None
        with exactly(x.device):
            for lr, penalty in product(rates, weights):
                projection, losses = self._train(lr, penalty)
                if not bool(torch.isfinite(losses).all() & torch.isfinite(projection).all()):
                    continue
                guesses = torch.cat([self._scores(part, projection).argmax(1) for part in x.split(CHUNK)])
                right = int((guesses.cpu() == codes).sum())
                if right > best:
                    best, found = right, (lr, penalty, projection, losses)
        if found is None:
            got = f"{rates} whose losses are not finite"
            raise ValueError(_errors.message(where, "lrs", "hold a rate that converges", got, "lower them"))
        self._keep(*found)
        return self

    @classmethod
    def _restored(cls, tensors: dict[str, Tensor], values: dict[str, Any]) -> Self:
        # A new fit starts where the first one did.
        values["params"]["image_projection"] = tensors["start_"]
        return super()._restored(tensors, values)

    def _scores(self, x: Tensor, projection: Tensor) -> Tensor:  # [N, V] -> [N, C]
        x = x.to(compute_dtype(x.dtype))
        text, matrix = (m.to(x.device, x.dtype) for m in (self._text_rows, projection))
        return (normalize(x @ matrix, dim=1) @ text.T).mul_(float(self.logit_scale))

    def _logits(self, x: Tensor) -> Tensor:
        return self._scores(x, self.projection_)

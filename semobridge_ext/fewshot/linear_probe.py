"""LP++: a linear probe with a text weight per class, steps taken from the data (arXiv 2404.02285).

    logits = x·w_cᵀ + b_c + α_c·x·t_cᵀ            L = mean cross-entropy over the M shots

on unit rows. w starts from the class sums, b from 0, every α_c from 250·mean_c mean_{i: y_i = c} x_i·t_c.
w and b move with momentum 0.9 at the rate 4M/λ_max(XᵀX), α every ten steps at M/(4·max_c Σ_i (x_i·t_c)²).

Where there are fewer shots than dimensions, w never leaves their span: the steps are taken in an
orthonormal basis of it, which changes nothing but the width of the products.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from semobridge_ext import _errors, _inputs, _numbers
from semobridge_ext._schema import Field
from semobridge_ext.fewshot.estimator import exactly, unchanged_on_error
from semobridge_ext.fewshot.stored_estimator import StoredEstimator
from semobridge_ext.fewshot.training_checks import check_losses
from semobridge_ext.runtime.plain_modes import plain_modes
from semobridge_ext.runtime.products import add_product, product
from semobridge_ext.runtime.rows import compute_dtype

if TYPE_CHECKING:
    from typing_extensions import Self

_START = 250.0  # of α, by the mean cosine of shots and their texts


class LPPlusPlus(StoredEstimator):
    """A linear probe and a weight of the text for each class, trained by full-batch steps.

    Args:
        text_features: [C, D] class text features, any length; None: the images alone. class_names: C names;
            None: 0..C-1, without text what y holds.
        steps: of the training. momentum: of w and b. alpha_every: steps between two of α.
        eval_every: steps between looks at the validation data, where ``fit`` gets any.
        progress: a progress bar on stderr.

    Attributes: coef_ [C, D] (w), intercept_ [C] (b), alpha_ [C]; losses_ [steps] before each step;
        best_step_: steps behind the kept parameters.

    Raises:
        TypeError, ValueError: from ``fit``: NaN features, widths that differ, labels without text,
            counts below their least.

    Numerics: step sizes in float64, steps in float32 (float64 for float64 shots), gradients by hand;
        deterministic. The rates are the authors'; their program starts b at random and never clears α's
        gradient, so that a step of α there sums all before it: here b starts at 0 and each step is of its own
        gradient.

    Memory: 4·M·C + 4·M·D values beside the shots; 2·N·C + 2·N·D with N validation rows.

    Example:
        >>> import torch, semobridge_ext as sb
        >>> clf = sb.LPPlusPlus(torch.eye(2), class_names=["a", "b"], steps=20)
        >>> clf.fit(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), ["a", "b"]).predict([[3.0, 1.0]]).tolist()
        ['a']

    Paper: LP++: A Surprisingly Strong Linear Probe for Few-Shot CLIP, arXiv 2404.02285.
    """

    _file: ClassVar[dict[str, Field]] = {
        "_text_rows": Field(("C", "D")),
        "coef_": Field(("C", "D")),
        "intercept_": Field(("C",)),
        "alpha_": Field(("C",)),
    }

    def __init__(
        self,
        text_features: Any = None,  # [C, D]
        *,
        class_names: Sequence[Hashable] | None = None,
        steps: int = 300,
        momentum: float = 0.9,
        alpha_every: int = 10,
        eval_every: int = 1,
        progress: bool = False,
    ) -> None:
        self.text_features, self.class_names = text_features, class_names
        self.steps, self.momentum, self.alpha_every = steps, momentum, alpha_every
        self.eval_every, self.progress = eval_every, progress

    @plain_modes()
    def fit(self, X: Any, y: Any, *, validation: tuple[Any, Any] | None = None) -> Self:
        """Trains on the shots.

        Args:
            X: [M, D] raw image features, a floating-point tensor or array.
            y: M class names of the text rows, any number of rows per class.
            validation: (features, names) that choose the step to keep, the last of the best as the authors
                have it; never the test part. None: the last step.

        Raises:
            TypeError, ValueError: features that are no finite floating-point rows, a class without a shot,
                a label without text, widths that differ, a loss that diverged. The estimator is then as it
                was.
        """
        self._check_numbers("fit")
        for name, least, usual in (("steps", 0, 300), ("alpha_every", 1, 10), ("eval_every", 1, 1)):
            value = getattr(self, name)
            if not _numbers.is_whole(value) or value < least:
                contract = f"be a whole number from {least} up"
                remedy = f"the default is {usual}"
                raise ValueError(_errors.message("LPPlusPlus.fit", name, contract, value, remedy))
        with unchanged_on_error(self):
            x, codes = self._support_beside_text("fit", X, y)
            held = None
            if validation is not None:
                features, names = _inputs.pair(
                    "LPPlusPlus.fit", "validation", validation, "(features, names)"
                )
                queries = _inputs.features("LPPlusPlus.fit", "validation", features, x.shape[1])
                held = queries, self._codes("fit", names, len(queries)).to(x.device)
            with exactly(x.device):
                self._train(x, codes.to(x.device), held)
        return self

    def _train(self, x: Tensor, codes: Tensor, held: tuple[Tensor, Tensor] | None) -> None:
        from tqdm import tqdm

        text = self._text_rows.to(x.device, x.dtype)
        basis = _basis(x)
        state = _start(x if basis is None else x @ basis, x @ text.T, codes, len(text))
        looks = None
        if held is not None:
            queries = normalize(held[0].to(x.device, x.dtype), dim=1)
            looks = queries if basis is None else queries @ basis, queries @ text.T
        losses = torch.empty(self.steps, dtype=x.dtype, device=x.device)
        kept, best, best_step = state.parameters(), -1, self.steps
        for step in tqdm(range(self.steps), desc="train", disable=not self.progress):
            losses[step] = state.step(self.momentum, (step + 1) % self.alpha_every == 0)
            if looks is not None and ((step + 1) % self.eval_every == 0 or step + 1 == self.steps):
                assert held is not None
                right = int((state.logits(*looks).argmax(dim=1) == held[1]).sum())
                if right >= best:
                    kept, best, best_step = state.parameters(), right, step + 1
        if looks is None or not self.steps:
            kept = state.parameters()
        self.losses_ = losses.cpu()
        remedy = f"lower momentum={self.momentum:g}; the rates follow from the shots"
        check_losses("LPPlusPlus.fit", self.losses_, kept, remedy)
        weights, self.intercept_, self.alpha_ = kept
        self.coef_ = weights if basis is None else weights @ basis.T
        self.best_step_ = best_step

    def _logits(self, x: Tensor) -> Tensor:
        unit = normalize(x.to(compute_dtype(x.dtype)), dim=1)
        text, coef, alpha, bias = (
            m.to(x.device, unit.dtype) for m in (self._text_rows, self.coef_, self.alpha_, self.intercept_)
        )
        return torch.addmm(bias, unit, torch.addcmul(coef, alpha.unsqueeze(1), text).T)


def _basis(x: Tensor) -> Tensor | None:  # [D, M]
    """Orthonormal columns that span the shots; None where they are no fewer than the dimensions."""
    if len(x) >= x.shape[1]:
        return None
    return torch.linalg.qr(x.double().T).Q.to(x.dtype)


class _State(NamedTuple):
    rows: Tensor  # [M, r] the shots in the basis
    cosines: Tensor  # [M, C] with the texts
    codes: Tensor  # [M] int64
    weights: Tensor  # [C, r]; this and what follows is updated in place
    bias: Tensor  # [C]
    alpha: Tensor  # [C]
    moved: Tensor  # [C, r] momentum of the weights
    bias_moved: Tensor  # [C]
    rate: float
    alpha_rate: float

    def parameters(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.weights.clone(), self.bias.clone(), self.alpha.clone()

    def logits(self, rows: Tensor, cosines: Tensor) -> Tensor:
        return product(rows, self.weights.T).add_(self.bias).addcmul_(cosines, self.alpha)

    def step(self, momentum: float, with_alpha: bool) -> Tensor:
        """The loss before the step."""
        log = torch.log_softmax(self.logits(self.rows, self.cosines), dim=1)
        own = self.codes.unsqueeze(1)
        loss = -log.gather(1, own).mean()
        grad = log.exp_()  # softmax − one-hot, over M
        grad.scatter_add_(1, own, grad.new_full((1, 1), -1.0).expand_as(own)).div_(len(grad))
        if with_alpha:
            self.alpha.sub_(torch.einsum("mc,mc->c", grad, self.cosines), alpha=self.alpha_rate)
        add_product(self.moved.mul_(momentum), grad.T, self.rows)
        self.bias_moved.mul_(momentum).add_(grad.sum(dim=0))
        self.weights.sub_(self.moved, alpha=self.rate)
        self.bias.sub_(self.bias_moved, alpha=self.rate)
        return loss


def _start(rows: Tensor, cosines: Tensor, codes: Tensor, classes: int) -> _State:
    wide = rows.double()
    gram = wide.T @ wide if rows.shape[1] <= len(rows) else wide @ wide.T
    largest = float(torch.linalg.eigvalsh(gram)[-1])
    squares = float(cosines.double().square().sum(dim=0).max())
    own = cosines.double().gather(1, codes.unsqueeze(1)).squeeze(1)
    counts = torch.bincount(codes, minlength=classes)
    means = torch.zeros(classes, dtype=torch.float64, device=rows.device).index_add_(0, codes, own) / counts
    sums = torch.zeros(classes, rows.shape[1], dtype=torch.float64, device=rows.device)
    weights = sums.index_add_(0, codes, wide).to(rows.dtype)
    count = len(rows)
    return _State(
        rows, cosines, codes, weights, rows.new_zeros(classes),
        rows.new_full((classes,), _START * float(means.mean())),
        torch.zeros_like(weights), rows.new_zeros(classes),
        4 * count / largest if largest > 0 else 0.0, count / (4 * squares) if squares > 0 else 0.0,
    )  # fmt: skip

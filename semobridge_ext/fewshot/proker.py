"""ProKeR: kernel ridge regression of what the text leaves unexplained of the shots (arXiv 2501.11175).

    k(x, s) = exp(−β(1 − x·s)),   A = (K_SS/λ + I)⁻¹(Y − S·tᵀ),   logits = κ·(x·tᵀ + K_XS·A)

on unit rows; κ changes no prediction. With K_SS = Q·diag(e)·Qᵀ

    A = Q·diag(λ/(e + λ))·Qᵀ(Y − S·tᵀ)

so that one decomposition per β serves every λ of the search.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from semobridge_ext import _errors
from semobridge_ext._schema import SUMS, WHOLE, Field
from semobridge_ext.fewshot.estimator import exactly, unchanged_on_error
from semobridge_ext.fewshot.stored_estimator import StoredEstimator
from semobridge_ext.runtime.plain_modes import plain_modes

if TYPE_CHECKING:
    from typing_extensions import Self

_BLOCK = 1 << 23  # kernel values at once


class ProKeR(StoredEstimator):
    """Text cosines plus a kernel ridge regression of their error on the shots, nothing trained.

    Args:
        text_features: [C, D] class text features, any length; None: the images alone. class_names: C names;
            None: 0..C-1, without text what y holds.
        beta: sharpness of the kernel before ``tune``, ≥ 0. ridge: λ before ``tune``, > 0; a small one
            trusts the text, a large one adds up the kernel like a cache. logit_scale: κ.

    Attributes: keys_ [S, D], labels_ [S] int64, duals_ [C, S] float64 (Aᵀ), beta_, ridge_.

    Raises:
        TypeError, ValueError: from ``fit``: NaN features, widths that differ, labels without text, a beta or
            ridge outside of its range. NotImplementedError: from ``fit``: more than ``ROWS`` shots.

    Numerics: kernel, factor and decomposition in float64 on the CPU; prediction in float32 (float64 for
        float64 shots).

    Memory: ``fit`` holds two S×S matrices in float64, ``tune`` four: 8.6 GB at the limit of 16 384 shots.
        Prediction takes 64 MB of kernel values at a time.

    Example:
        >>> import torch, semobridge_ext as sb
        >>> clf = sb.ProKeR(torch.eye(2), class_names=["a", "b"])
        >>> clf.fit(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), ["a", "b"]).predict([[3.0, 1.0]]).tolist()
        ['a']

    Paper: ProKeR: A Kernel Perspective on Few-Shot Adaptation of Large Vision-Language Models,
    arXiv 2501.11175.
    """

    _numbers = ("beta_", "ridge_")
    _file: ClassVar[dict[str, Field]] = {
        "_text_rows": Field(("C", "D")),
        "keys_": Field(("S", "D"), SUMS),
        "labels_": Field(("S",), WHOLE, bound="C"),
        "duals_": Field(("C", "S")),
    }
    BETAS = tuple(0.5 + 0.25 * i for i in range(11))  # 0.5 .. 3
    LAMBDAS = tuple(10.0 ** (i / 3 - 3) for i in range(10))  # 0.001 .. 1
    ROWS = 16384

    def __init__(
        self,
        text_features: Any = None,  # [C, D]
        *,
        class_names: Sequence[Hashable] | None = None,
        beta: float = 1.0,
        ridge: float = 0.1,
        logit_scale: float = 100.0,
    ) -> None:
        self.text_features, self.class_names = text_features, class_names
        self.beta, self.ridge, self.logit_scale = beta, ridge, logit_scale

    @plain_modes()
    def fit(self, X: Any, y: Any) -> Self:
        """Takes the shots; at most ``ROWS`` of them.

        Args:
            X: [M, D] raw image features, a floating-point tensor or array.
            y: M class names of the text rows, any number of rows per class.

        Raises:
            TypeError, ValueError: features that are no finite floating-point rows, a class without a shot,
                a label without text, widths that differ, a beta below 0 or a ridge of 0 and less.
            NotImplementedError: more than ``ROWS`` shots, whose kernel has M² values.
                The estimator is then as it was.
        """
        where = "ProKeR.fit"
        self._check_numbers("fit")
        if self.beta < 0:
            raise ValueError(_errors.message(where, "beta", "be ≥ 0", self.beta, "tune(...) searches it"))
        if self.ridge <= 0:
            raise ValueError(_errors.message(where, "ridge", "be > 0", self.ridge, "tune(...) searches it"))
        with unchanged_on_error(self):
            keys, labels = self._support_beside_text("fit", X, y)
            if len(keys) > self.ROWS:
                remedy = "draw fewer shots, or use GDA, whose memory does not grow with them"
                contract = f"have at most {self.ROWS} rows, as the kernel has their square"
                raise NotImplementedError(_errors.message(where, "X", contract, keys, remedy))
            self.keys_, self.labels_ = keys, labels
            with exactly(keys.device):
                self._solve(float(self.beta), float(self.ridge))
        return self

    @classmethod
    def _restored(cls, tensors: dict[str, Tensor], values: dict[str, Any]) -> Self:
        longest = float(torch.linalg.vector_norm(tensors["keys_"].double(), dim=1).max())
        if longest > 1 + 1e-3:  # k(x, s) would leave 0..1, up to infinity
            raise ValueError(f"keys_ must hold unit rows, got a length of {longest:g}")
        return super()._restored(tensors, values)

    def _residual(self) -> tuple[Tensor, Tensor]:
        """The shots [S, D] and Y − S·tᵀ [S, C], in float64."""
        shots = self.keys_.to("cpu", torch.float64)
        rest = -(shots @ self._text_rows.to("cpu", torch.float64).T)
        rest[torch.arange(len(shots)), self.labels_.cpu()] += 1
        return shots, rest

    def _solve(self, beta: float, ridge: float) -> None:
        shots, rest = self._residual()
        kernel = _kernel(shots, shots, beta)
        kernel.diagonal().add_(ridge)
        factor, failed = torch.linalg.cholesky_ex(kernel)
        if int(failed):
            contract = "outweigh the rounding of the kernel"
            raise ValueError(_errors.message("ProKeR.fit", "ridge", contract, ridge, "take 0.001 or more"))
        self.duals_ = torch.cholesky_solve(rest, factor).mul_(ridge).T.contiguous()
        self.beta_, self.ridge_ = beta, ridge

    def _blocks(self, x: Tensor) -> Iterator[Tensor]:
        return iter(x.split(max(1, _BLOCK // len(self.keys_))))

    def _logits(self, x: Tensor) -> Tensor:
        keys = self.keys_
        text, duals = (m.to(keys.device, keys.dtype) for m in (self._text_rows, self.duals_))
        parts = []
        for part in self._blocks(x):
            unit = normalize(part.to(keys.device, keys.dtype), dim=1)
            parts.append(torch.addmm(unit @ text.T, _kernel(unit, keys, self.beta_), duals.T))
        return torch.cat(parts).mul_(float(self.logit_scale))

    @plain_modes()
    def tune(self, X: Any, y: Any, **unused: Any) -> Self:
        """Takes β and λ of a grid (``BETAS``, ``LAMBDAS``) with the best validation accuracy.

        The first best is kept, β outside, λ inside. All of it is computed in float64.

        Args:
            X: [N, D] raw validation features, a floating-point tensor or array.
            y: N class names that were fitted.
            unused: what other estimators' ``tune`` takes; ignored. TypeError for what none takes.

        Raises:
            ValueError: not fitted, another width, or a class that was not fitted.
        """
        self._check_unused(unused)
        x = self._queries("tune", X)
        codes = self._codes("tune", y, len(x))
        shots, rest = self._residual()
        text = self._text_rows.to("cpu", torch.float64)
        best = (-1, 0.0, 0.0)
        with exactly(x.device):
            for beta in self.BETAS:
                right = self._count(x, codes, shots, rest, text, beta)
                most = max(right)
                if most > best[0]:
                    best = most, beta, self.LAMBDAS[right.index(most)]
            self._solve(*best[1:])
        return self

    def _count(
        self, x: Tensor, codes: Tensor, shots: Tensor, rest: Tensor, text: Tensor, beta: float
    ) -> list[int]:
        """How many validation rows each λ gets right, with one decomposition."""
        values, vectors = torch.linalg.eigh(_kernel(shots, shots, beta))
        rotated, right, start = vectors.T @ rest, [0] * len(self.LAMBDAS), 0
        for part in self._blocks(x):
            unit = normalize(part.to("cpu", torch.float64), dim=1)
            want, start = codes[start : start + len(part)], start + len(part)
            base, seen = unit @ text.T, _kernel(unit, shots, beta) @ vectors
            for i, ridge in enumerate(self.LAMBDAS):
                shrunk = rotated * (ridge / (values.clamp(min=0) + ridge)).unsqueeze(1)
                logits = torch.addmm(base, seen, shrunk)
                right[i] += int((logits.argmax(dim=1) == want).sum())
        return right


def _kernel(rows: Tensor, keys: Tensor, beta: float) -> Tensor:  # [N, D], [S, D] -> [N, S]
    return (rows @ keys.T).sub_(1).mul_(beta).exp_()

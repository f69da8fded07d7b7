"""One SeMoBridge-T step by hand: loss, gradients, AdamW (arXiv 2509.26036; docs/methods.md §2).

Rows lie in class order. With B = W F̂ᵀ [T, C], the cheaper exact forms are

    e = f W⁺ + τ_y     h = e WWᵀ     r = ‖e‖     q = ‖eW‖ = sqrt(e·h)     m_c = mean_k e/r
    F̂ = norm(m W)      CE_img  = κ·f F̂ᵀ/‖f‖      CE_cons = (f (W⁺B) + τ_y B)/q

so no bridged shot is ever projected, and both wide losses share their left operand f: one product
forward, [F̂ᵀ | W⁺B], and one backward, Z = fᵀ[G₁ | G₂] (G the gradients with their row scales). Then

    dF̂ = Z₁ᵀ + (W⁺ᵀ Z₂ + τᵀ Y)ᵀ W + text       dW⁺ = Z₂ Bᵀ + fᵀ de      dτ = Y Bᵀ + Σ_k de
    de = (m̄ − u(u·m̄))/(K r) − (Σ_c g l / q²)·h        u = e/r,  m̄ = dm,  Y = Σ_k G₂

which is 3 products of N·T·D and 4 of N·C·D multiply-adds, against 5 and 6 for autograd. The products and
the pieces between them are in torch.py, cpu.py and cuda.py, and choice.py picks one of these.
A chunk of rows keeps its logits in cache between the product, the softmax and the next product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from semobridge_ext._engines.bridge_training.choice import OP, Choice, PiecesOf, choose
from semobridge_ext._engines.bridge_training.cuda import CudaTrainingPieces, HalvesOfAnySize
from semobridge_ext._engines.bridge_training.halves import WideHalves
from semobridge_ext._engines.bridge_training.spec import LossWeights
from semobridge_ext._engines.bridge_training.torch import TorchTrainingPieces
from semobridge_ext._engines.bridge_training.workspace import Workspace
from semobridge_ext.runtime import self_check
from semobridge_ext.runtime.backend import requested
from semobridge_ext.runtime.step_graph import WARM_UP, Step, repeatable


class BridgeTrainer(Workspace):
    """Parameters, AdamW state and workspaces of one run; a step reads nothing back to the host.

    Args:
        inverse: [D, T] initial W⁺; copied. text_projection: [T, D]. shots: [N, D] in class order.
        labels: [N] int64, sorted. text: [C, D] unit rows. hidden: [C, T] unit rows, or None.
        class_bias: train τ. logit_scale: κ. weights: factors of the losses.
        pieces: what runs between the products; None: by device, dtype and backend.
        function: the caller, for the messages of a backend that cannot be had.

    All tensors of one dtype (float32 or float64) and device. ``plan`` sets the rates, ``step`` takes the
    steps. On a CUDA device the first step is captured in a graph, which every step replays: nothing
    is allocated, and what changes from step to step (the count, the rates) is read from the device.

    Raises:
        RuntimeError, NotImplementedError: the backend asked for was not built, or has no kernel for the
            device and dtype.

    Numerics: sums in that dtype, in an order that does not depend on the threads. Large products of the CPU
        are the core's where it has AVX-512 (runtime/products.py), others PyTorch's, which follow
        ``torch.backends.cuda.matmul.allow_tf32``; large wide ones are of float16 halves on CUDA devices
        (halves.py), which keep 22 bits of an operand.

    Memory: 2·N·T values (plain PyTorch: 3·N·T), a chunk of logits (plain PyTorch: two; Triton: none, but
    up to 16 of [D, C]; by halves 1 or 1.5·N·D and five of [2C, D] more), three of [C, C], four copies of
    the parameters, and about a dozen of [C, D] and [C, T].
    """

    def __init__(
        self,
        inverse: Tensor,  # [D, T]
        text_projection: Tensor,  # [T, D]
        shots: Tensor,  # [N, D]
        labels: Tensor,  # [N]
        text: Tensor,  # [C, D]
        hidden: Tensor | None,  # [C, T]
        *,
        class_bias: bool = True,
        logit_scale: float = 100.0,
        weights: LossWeights | None = None,
        pieces: PiecesOf | None = None,
        function: str = "BridgeTrainer",
    ) -> None:
        chosen = choose(function, shots.device, shots.dtype) if pieces is None else Choice(pieces)
        super().__init__(
            inverse, text_projection, shots, labels, text, hidden, class_bias=class_bias,
            logit_scale=logit_scale, weights=weights or LossWeights(), pieces=chosen.pieces,
            streamed=chosen.streamed,
        )  # fmt: skip
        self._graph = chosen.graph
        self.plan([], 0.0)

    # -- loss and gradients --------------------------------------------------------------------------

    def loss_and_gradients(self) -> Tensor:
        """The total loss, a scalar on the device that the next call overwrites; fills ``gradients``."""
        tau, grad_inverse, p = self.parameters.get("tau"), self.gradients["inverse"], self.pieces
        self.pieces.product(self.class_means(), self.w, self.grad_hat)
        p.unit_rows(self.grad_hat, self.hat, self.hat_norms)
        if self.consistency_on:
            self.pieces.product(self.e, self.gram, self.h)
            p.row_lengths(self.e, self.h, self.q, self.inverse_q)
        if self.image_on or self.consistency_on:
            self._operands(tau)
            self._wide()
        if self.image_on:
            self.grad_hat.copy_(self.z[:, : self.classes].T)
        else:
            self.grad_hat.zero_()
        if self.consistency_on:
            self._wide_gradients(tau)
        else:
            grad_inverse.zero_()
        self._text_losses()
        dot = self.dot if self.consistency_on else None
        grad_tau = self.gradients.get("tau")
        p.shot_grads(
            self.e, self.h, self.r, self.q, self.inverse_q, dot, self.grad_mean, grad_tau, self.extra
        )
        self.pieces.add_product(self.shots.T, self.h, grad_inverse)
        if "bias" in self._parts:
            assert tau is not None and grad_tau is not None
            p.bias_loss(tau, self.weights.bias, grad_tau, self._parts["bias"])
        p.total_loss(self._parts, self._all_parts, self._count, self._now, self._loss, self._losses)
        return self._loss[0]

    def class_means(self) -> Tensor:  # [C, T]
        """``m_c``, the mean of the unit e of a class, under the present parameters."""
        self.pieces.product(self.shots, self.parameters["inverse"], self.e)
        self.pieces.class_means(self.e, self.parameters.get("tau"), self.r, self.mean)
        return self.mean

    def _operands(self, tau: Tensor | None) -> None:
        """[F̂ᵀ | W⁺B] [D, C or 2C] and τB [C, C]."""
        if not self.consistency_on:
            return  # the operand is F̂ᵀ itself
        self.pieces.product(self.w, self.hat.T, self.back)
        if self._halves is None:
            self.pieces.product(self.parameters["inverse"], self.back, self.carried)
        else:
            torch.mm(self.back.T, self.parameters["inverse"].T, out=self.carried.T)
        if self.image_on and self._streamed is None and self._halves is None:
            torch.cat((self.hat.T, self.carried), dim=1, out=self.operand)
        if tau is not None:
            self.pieces.product(tau, self.back, self.square)

    def _wide(self) -> None:
        """Both losses over N×C logits, chunk by chunk; by Triton without ever holding them.

        Reads: operand, square (τB), image_scale, inverse_q. Writes: the parts "image" and "consistency"
        [N], dot [N], z [D, C or 2C] = Z and sums [C, C] = Y.
        """
        if self._streamed is not None:
            self._wide_streamed(self._streamed)
            return
        if self._halves is not None:
            self._wide_of_halves(self._halves)
            return
        c, n, p = self.classes, len(self.shots), self.pieces
        self.z.zero_()
        for chunk in self._chunks:
            begin, end = self.bounds[chunk[0]], self.bounds[chunk[1]]
            f, logits = self.shots[begin:end], self.logits[: end - begin]
            p.product(f, self.operand, logits)
            if self.image_on:
                loss, factor = self._parts["image"], self.weights.image / n
                p.row_loss(chunk, logits[:, :c], factor, self.image_scale, loss)
            if self.consistency_on:
                loss, factor = self._parts["consistency"], self.weights.consistency / n
                add = None if self.sums is None else self.square
                p.row_loss(chunk, logits[:, -c:], factor, self.inverse_q, loss, add, self.dot, self.sums)
            p.add_product(f.T, logits, self.z)

    def _wide_of_halves(self, halves: WideHalves) -> None:
        c, n, on, p = self.classes, len(self.shots), self.weights, halves.pieces
        halves.cut()
        if self.consistency_on:
            halves.bound_consistency(on.consistency / n, self.inverse_q)
        # Columns of the first loss: their gradients have the first bound.
        split = c if self.image_on else 0
        for i, chunk in enumerate(self._chunks):
            begin, end = self.bounds[chunk[0]], self.bounds[chunk[1]]
            logits = self.logits[: end - begin]
            halves.multiply(begin, end, logits)
            if self.image_on:
                p.row_loss_halves(
                    chunk, logits[:, :c], on.image / n, self.image_scale, self._parts["image"], None, None,
                    None, halves.left, halves.right[:c], halves.bounds[:1],
                )  # fmt: skip
            if self.consistency_on:
                p.row_loss_halves(
                    chunk, logits[:, -c:], on.consistency / n, self.inverse_q, self._parts["consistency"],
                    None if self.sums is None else self.square, self.dot, self.sums, halves.left,
                    halves.right[-c:], halves.bounds[1:],
                )  # fmt: skip
            halves.add(begin, end, logits, split, self.z, first=i == 0)

    def _wide_streamed(self, losses: Callable[..., None]) -> None:
        c, n, on = self.classes, len(self.shots), self.weights
        if self.image_on:
            losses(self.hat.T, self.image_scale, on.image / n, self._parts["image"], self.z[:, :c])
        if self.consistency_on:
            if self.sums is not None:
                self.sums.zero_()
            losses(
                self.carried, self.inverse_q, on.consistency / n, self._parts["consistency"], self.z[:, -c:],
                None if self.sums is None else self.square, self.dot, self.sums,
            )  # fmt: skip

    def _wide_gradients(self, tau: Tensor | None) -> None:
        """From Z₂ and Y: dF̂, dW⁺ and what dτ gets past the shots' own."""
        z2 = self.z[:, -self.classes :]
        self.pieces.product(self.parameters["inverse"].T, z2, self.grad_back)
        if tau is not None and self.sums is not None and self.extra is not None:
            self.pieces.add_product(tau.T, self.sums, self.grad_back)
            self.pieces.product(self.sums, self.back.T, self.extra)
        self.pieces.product(z2, self.back.T, self.gradients["inverse"])
        self.pieces.add_product(self.grad_back.T, self.w, self.grad_hat)

    def _text_losses(self) -> None:
        """Completes dF̂ and takes it to dm; adds what dm gets from the un-projected text."""
        on, p = self.weights, self.pieces
        if "text_projected" in self._parts:
            self.pieces.product(self.hat, self.text.T, self.square)
            grad = p.diagonal_loss(self.square, on.text_projected, self._parts["text_projected"])
            self.pieces.add_product(grad, self.text, self.grad_hat)
        p.unit_grad(self.grad_hat, self.hat, self.hat_norms)
        self.pieces.product(self.grad_hat, self.w.T, self.grad_mean)
        if "text_embedded" in self._parts:
            assert self.hidden is not None
            p.unit_rows(self.mean, self.unit_mean, self.mean_norms)
            self.pieces.product(self.unit_mean, self.hidden.T, self.square)
            grad = p.diagonal_loss(self.square, on.text_embedded, self._parts["text_embedded"])
            self.pieces.product(grad, self.hidden, self.grad_unit)
            p.unit_grad(self.grad_unit, self.unit_mean, self.mean_norms, into=self.grad_mean)

    # -- optimiser -----------------------------------------------------------------------------------

    def plan(self, rates: Sequence[float], decay: float) -> None:
        """Learning rates of the steps 0, 1, …, and AdamW's decay; ``losses`` starts anew."""
        self._planned = len(rates)
        self._once: Step | None = None
        self._losses = self.shots.new_zeros(len(rates) + WARM_UP + 1)  # warm-up may run past the end
        self.losses = self._losses[: len(rates)]
        self.pieces.plan(rates, decay, self.shots)
        self.steps = 0

    @property
    def steps(self) -> int:
        """Steps taken; setting it moves in the plan."""
        return self._steps

    @steps.setter
    def steps(self, value: int) -> None:
        self._steps = value
        self._count.fill_(value)

    def step(self) -> Tensor:
        """The plan's next AdamW step, as ``torch.optim.AdamW`` takes it; the loss before it."""
        if self._steps >= self._planned:
            raise ValueError(
                f"BridgeTrainer.step: plan must hold step {self._steps}, got {self._planned} rates; "
                "call plan with more"
            )
        if self._once is None:
            state = [self._flat[0], *self._flat[2:], self._count, self._losses]
            self._once = repeatable(self.launch, state, self.shots.device) if self._graph else self.launch
        self._once()
        self._steps += 1
        return self.losses[self._steps - 1]

    def launch(self) -> None:
        """One step as a sequence of launches that a graph can repeat."""
        self.loss_and_gradients()
        self.pieces.adamw(*self._flat, self._now, self._count)


def _check_kernels(device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """What is compared before `auto` takes the kernels; by halves too, where the device multiplies them."""
    kinds: tuple[PiecesOf, ...] = (TorchTrainingPieces, TorchTrainingPieces)
    if requested() == "native":
        kinds = CudaTrainingPieces, HalvesOfAnySize
    return [found for pieces in kinds for found in _checked_step(device, dtype, pieces)]


def _checked_step(device: torch.device, dtype: torch.dtype, pieces: PiecesOf) -> list[Tensor]:
    """The loss, its gradients, and what a step changes.

    The moments are not zero: AdamW's first step would be the gradient's sign, which rounding may turn.
    """
    labels = torch.tensor([0, 0, 0, 1, 2, 2, 2, 2], device="cpu").to(device)
    inverse, w, shots, text, hidden = (
        self_check.fixed(*shape, device=device, dtype=dtype, seed=i) / 8
        for i, shape in enumerate(((24, 20), (20, 24), (8, 24), (3, 24), (3, 20)))
    )
    unit = torch.nn.functional.normalize
    trainer = BridgeTrainer(
        inverse, w, shots, labels, unit(text, dim=1), unit(hidden, dim=1), logit_scale=4.0, pieces=pieces
    )
    rate = 1 / 16
    trainer.plan([rate], 0.01)
    values, _, first, second = trainer._flat
    values[inverse.numel() :].copy_(self_check.fixed(values.numel(), device=device)[inverse.numel() :] / 8)
    first.copy_(values.roll(1))
    second.copy_(1 + values.abs())
    found = [trainer.loss_and_gradients().clone(), *(g.clone() for g in trainer.gradients.values())]
    before = values.clone()
    trainer.launch()
    return [*found, first, second, (values - before) / rate]


self_check.register(OP, _check_kernels)

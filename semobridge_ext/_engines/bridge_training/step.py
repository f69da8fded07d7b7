"""One SeMoBridge-T step by hand: loss, gradients, AdamW (arXiv 2509.26036; METHODS §2).

Rows lie in class order. With B = W F̂ᵀ [T, C], the cheaper exact forms are

    e = f W⁺ + τ_y     h = e WWᵀ     r = ‖e‖     q = ‖eW‖ = sqrt(e·h)     m_c = mean_k e/r
    F̂ = norm(m W)      CE_img  = κ·f F̂ᵀ/‖f‖      CE_cons = (f (W⁺B) + τ_y B)/q

so no bridged shot is ever projected, and both wide losses share their left operand f: one product
forward, [F̂ᵀ | W⁺B], and one backward, Z = fᵀ[G₁ | G₂] (G the gradients with their row scales). Then

    dF̂ = Z₁ᵀ + (W⁺ᵀ Z₂ + τᵀ Y)ᵀ W + text       dW⁺ = Z₂ Bᵀ + fᵀ de      dτ = Y Bᵀ + Σ_k de
    de = (m̄ − u(u·m̄))/(K r) − (Σ_c g l / q²)·h        u = e/r,  m̄ = dm,  Y = Σ_k G₂

which is 3 products of N·T·D and 4 of N·C·D multiply-adds, against 5 and 6 for autograd. The products are
PyTorch's; what lies between them is in torch.py (CPU core, plain PyTorch) and cuda.py.
Chunks of rows keep a chunk's logits in cache between the product, the softmax and the next product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from semobridge_ext._engines.bridge_training.cuda import CudaPieces
from semobridge_ext._engines.bridge_training.reference import LossWeights
from semobridge_ext._engines.bridge_training.torch import Batch, NativePieces, TorchPieces
from semobridge_ext.runtime.backend import HAS_CUDA, requested
from semobridge_ext.runtime.choice import resolve
from semobridge_ext.runtime.step_graph import WARM_UP, Step, repeatable

_CHUNK_VALUES = 1 << 20  # logits of a chunk of rows: 4 MiB
_CHUNK_VALUES_CUDA = 1 << 26  # a GPU gains nothing from a chunk in cache, but pays for every launch
_ALIGN = 64  # values: where a parameter begins in the one array of all


def pieces_for(device: torch.device, dtype: torch.dtype) -> Callable[[Batch], TorchPieces]:
    """What runs between the products, by the backend asked for."""
    single = dtype is torch.float32
    name = resolve("SeMoBridgeT", device, cuda=single, triton=single or "float64")
    if name == "native":
        return NativePieces if device.type == "cpu" else CudaPieces
    # Triton streams the wide losses; what is left is small, and csrc/cuda's where that was built.
    return CudaPieces if name == "triton" and device.type == "cuda" and HAS_CUDA else TorchPieces


class BridgeTrainer:
    """Parameters, AdamW state and workspaces of one run; a step reads nothing back to the host.

    Args:
        inverse: [D, T] initial W⁺; copied. text_projection: [T, D]. shots: [M, D] in class order.
        labels: [M] sorted. text: [C, D] unit rows. hidden: [C, T] unit rows, or None.
        class_bias: train τ. logit_scale: κ. weights: factors of the losses.
        pieces: what runs between the products; None: by device, dtype and backend.

    All tensors of one dtype (float32 or float64) and device. ``plan`` gives the rates, ``step`` takes the
    steps. On a CUDA device the first step is captured in a graph, which every step replays: nothing
    is allocated, and what changes from step to step (their count, rates) is read from the device.

    Numerics: sums in that dtype, in an order that does not depend on the threads. Products are
    PyTorch's and follow ``torch.backends.cuda.matmul.allow_tf32``.

    Memory: 2·M·T (plain PyTorch: 3·M·T), a chunk of logits (plain PyTorch: two; Triton: none, but up to 16
    of [D, C]), three of [C, C], four
    copies of the parameters, and of [C, D] and [C, T] about a dozen.
    """

    def __init__(
        self,
        inverse: Tensor,
        text_projection: Tensor,
        shots: Tensor,
        labels: Tensor,
        text: Tensor,
        hidden: Tensor | None,
        *,
        class_bias: bool = True,
        logit_scale: float = 100.0,
        weights: LossWeights | None = None,
        pieces: Callable[[Batch], TorchPieces] | None = None,
    ) -> None:
        self.weights = weights or LossWeights()
        self.w = text_projection.contiguous()
        self.shots, self.text, self.hidden = shots.contiguous(), text.contiguous(), hidden
        self.gram = self.w @ self.w.T  # WWᵀ
        self.classes = text.shape[0]
        counts = torch.bincount(labels, minlength=self.classes)
        self.labels = labels
        offsets = torch.zeros(self.classes + 1, dtype=torch.int64)
        torch.cumsum(counts.cpu(), 0, out=offsets[1:])
        self.bounds = offsets.tolist()
        norms = torch.linalg.vector_norm(shots, dim=1)
        self.image_scale = torch.where(norms == 0, torch.zeros_like(norms), logit_scale / norms)
        self.image_on = self.weights.image != 0
        self.consistency_on = self.weights.consistency != 0
        batch = Batch(
            labels.contiguous(), offsets.to(shots.device), self.bounds, counts.to(shots.dtype).unsqueeze(1),
            self.w.shape[0],
        )  # fmt: skip
        self.pieces = (pieces or pieces_for(shots.device, shots.dtype))(batch)
        self._graph = requested() != "eager"
        self._streamed = None
        if pieces is None and requested() == "triton":
            from semobridge_ext._engines.bridge_training.triton import StreamedLoss

            self._streamed = StreamedLoss(self.shots, batch.labels, batch.offsets)
        self._make_parameters(inverse, class_bias)
        self._chunks = self._cut()
        self._make_workspaces()
        self.plan([], 0.0)

    def _make_parameters(self, inverse: Tensor, class_bias: bool) -> None:
        """Parameters, gradients and moments: each one array, which AdamW takes whole, and views of it."""
        shapes = {"inverse": inverse.shape}
        if class_bias:
            shapes["tau"] = torch.Size((self.classes, inverse.shape[1]))
        begin, end = {}, 0
        for name, shape in shapes.items():
            begin[name] = end
            end += -(-shape.numel() // _ALIGN) * _ALIGN

        def views(flat: Tensor) -> dict[str, Tensor]:
            return {n: flat[begin[n] : begin[n] + s.numel()].view(s) for n, s in shapes.items()}

        new = self.shots.new_zeros
        self._flat = new(end), new(end), new(end), new(end)
        self.parameters, self.gradients, first, second = map(views, self._flat)
        self.state = {name: (first[name], second[name]) for name in shapes}
        self.parameters["inverse"].copy_(inverse)

    def _make_workspaces(self) -> None:
        new, c, (n, d), t = self.shots.new_empty, self.classes, self.shots.shape, self.w.shape[0]
        self.e, self.h, self.r = new(n, t), new(n, t), new(n)
        self.q, self.inverse_q, self.dot = new(n), new(n), new(n)
        self.mean, self.grad_mean = new(c, t), new(c, t)
        self.hat, self.hat_norms, self.grad_hat = new(c, d), new(c, 1), new(c, d)
        wide = c * (self.image_on + self.consistency_on)
        longest = max(self.bounds[b] - self.bounds[a] for a, b in self._chunks)
        self.logits = new(0 if self._streamed else longest, wide)
        self.z = new(d, wide)
        self.square = new(c, c)  # what a class adds to its shots' logits, later logits of the text losses
        self.operand = self.hat.T
        if self.consistency_on:
            self.back, self.grad_back, self.carried = new(t, c), new(t, c), new(d, c)
            self.operand = new(d, wide) if self.image_on else self.carried
        self.sums = self.extra = None
        if self.consistency_on and "tau" in self.parameters:
            self.sums, self.extra = new(c, c), new(c, t)
        if self.hidden is not None and self.weights.text_embedded != 0:
            self.unit_mean, self.mean_norms, self.grad_unit = new(c, t), new(c, 1), new(c, t)
        self._make_parts()

    def _make_parts(self) -> None:
        """The losses' parts: one array, and each loss's share of it."""
        c = self.classes if self.pieces.loss_per_row else 1
        size = {"image": len(self.shots), "consistency": len(self.shots)}
        size |= {"text_projected": c, "text_embedded": c, "bias": c}
        missing = {"bias": "tau" not in self.parameters, "text_embedded": self.hidden is None}
        on = [n for n in size if getattr(self.weights, n) != 0 and not missing.get(n)]
        self._all_parts = self.shots.new_zeros(sum(size[n] for n in on))
        self._parts = dict(zip(on, self._all_parts.split([size[n] for n in on]), strict=True))
        self._loss = self.shots.new_zeros(1)
        self._count = torch.zeros(1, dtype=torch.int64, device=self.shots.device)  # of the steps taken
        self._now = torch.zeros_like(self._count)  # the step under way

    def _cut(self) -> list[tuple[int, int]]:
        """Ranges of classes whose logits are about a chunk."""
        width = max(1, self.classes * (self.image_on + self.consistency_on))
        on_gpu = self.shots.is_cuda or isinstance(self.pieces, CudaPieces)
        rows = max(64, (_CHUNK_VALUES_CUDA if on_gpu else _CHUNK_VALUES) // width)
        chunks, first = [], 0
        for c in range(1, self.classes + 1):
            if c == self.classes or self.bounds[c + 1] - self.bounds[first] > rows:
                chunks.append((first, c))
                first = c
        return chunks

    # -- loss and gradients --------------------------------------------------------------------------

    def loss_and_gradients(self) -> Tensor:
        """The total loss, a scalar on the device that the next call overwrites; fills ``gradients``."""
        tau, grad_inverse, p = self.parameters.get("tau"), self.gradients["inverse"], self.pieces
        torch.mm(self.class_means(), self.w, out=self.grad_hat)
        p.unit_rows(self.grad_hat, self.hat, self.hat_norms)
        if self.consistency_on:
            torch.mm(self.e, self.gram, out=self.h)
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
        grad_inverse.addmm_(self.shots.T, self.h)
        if "bias" in self._parts:
            assert tau is not None and grad_tau is not None
            p.bias_loss(tau, self.weights.bias, grad_tau, self._parts["bias"])
        p.total_loss(self._parts, self._all_parts, self._count, self._now, self._loss, self._losses)
        return self._loss[0]

    def class_means(self) -> Tensor:  # [C, T]
        """``m_c``, the mean of the unit e of a class, under the present parameters."""
        torch.mm(self.shots, self.parameters["inverse"], out=self.e)
        self.pieces.class_means(self.e, self.parameters.get("tau"), self.r, self.mean)
        return self.mean

    def _operands(self, tau: Tensor | None) -> None:
        """[F̂ᵀ | W⁺B] [D, C or 2C] and τB [C, C]."""
        if not self.consistency_on:
            return  # the operand is F̂ᵀ itself
        torch.mm(self.w, self.hat.T, out=self.back)
        torch.mm(self.parameters["inverse"], self.back, out=self.carried)
        if self.image_on and self._streamed is None:
            torch.cat((self.hat.T, self.carried), dim=1, out=self.operand)
        if tau is not None:
            torch.mm(tau, self.back, out=self.square)

    def _wide(self) -> None:
        """Both losses over N×C logits, chunk by chunk; by Triton without ever holding them.

        Reads: operand, square (τB), image_scale, inverse_q. Writes: the parts "image" and "consistency"
        [N], dot [N], z [D, C or 2C] = Z and sums [C, C] = Y.
        """
        if self._streamed is not None:
            self._wide_streamed(self._streamed)
            return
        c, n, p = self.classes, len(self.shots), self.pieces
        self.z.zero_()
        for chunk in self._chunks:
            begin, end = self.bounds[chunk[0]], self.bounds[chunk[1]]
            f, logits = self.shots[begin:end], self.logits[: end - begin]
            torch.mm(f, self.operand, out=logits)
            if self.image_on:
                loss, factor = self._parts["image"], self.weights.image / n
                p.row_loss(chunk, logits[:, :c], factor, self.image_scale, loss)
            if self.consistency_on:
                loss, factor = self._parts["consistency"], self.weights.consistency / n
                add = None if self.sums is None else self.square
                p.row_loss(chunk, logits[:, -c:], factor, self.inverse_q, loss, add, self.dot, self.sums)
            self.z.addmm_(f.T, logits)

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
        torch.mm(self.parameters["inverse"].T, z2, out=self.grad_back)
        if tau is not None and self.sums is not None:
            self.grad_back.addmm_(tau.T, self.sums)
            torch.mm(self.sums, self.back.T, out=self.extra)
        torch.mm(z2, self.back.T, out=self.gradients["inverse"])
        self.grad_hat.addmm_(self.grad_back.T, self.w)

    def _text_losses(self) -> None:
        """Completes dF̂ and takes it to dm; adds what dm gets from the un-projected text."""
        on, p = self.weights, self.pieces
        if "text_projected" in self._parts:
            torch.mm(self.hat, self.text.T, out=self.square)
            grad = p.diagonal_loss(self.square, on.text_projected, self._parts["text_projected"])
            self.grad_hat.addmm_(grad, self.text)
        p.unit_grad(self.grad_hat, self.hat, self.hat_norms)
        torch.mm(self.grad_hat, self.w.T, out=self.grad_mean)
        if "text_embedded" in self._parts:
            assert self.hidden is not None
            p.unit_rows(self.mean, self.unit_mean, self.mean_norms)
            torch.mm(self.unit_mean, self.hidden.T, out=self.square)
            grad = p.diagonal_loss(self.square, on.text_embedded, self._parts["text_embedded"])
            torch.mm(grad, self.hidden, out=self.grad_unit)
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
            self._once = repeatable(self._take, state, self.shots.device) if self._graph else self._take
        self._once()
        self._steps += 1
        return self.losses[self._steps - 1]

    def _take(self) -> None:
        self.loss_and_gradients()
        self.pieces.adamw(*self._flat, self._now, self._count)

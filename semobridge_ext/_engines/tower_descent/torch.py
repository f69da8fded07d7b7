"""The pieces of an inversion step on a device, in plain PyTorch: what stands between the products.

_engines/tower_descent/plan.py strings them together; _engines/tower_descent/cuda.py puts the kernels of
csrc/cuda in their
place. A piece writes into tensors that it is given, allocates nothing and reads nothing back, so that a
CUDA graph can repeat it. `compute` is float32 (float64 in a float64 tower) and holds sums, statistics,
the loss and the learned rows; `stored` is the type of activations and products.

Letters: N rows · T tower width · M hidden width · D feature width · S samples · R learned vectors ·
n slots · m learned slots · P prefix rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from semobridge_ext._engines.tower_descent.spec import Linear, Norm
from semobridge_ext._engines.tower_descent.torch_attention import Heads, Scratch, TorchAttention

_QUICK = 1.702
_aten = torch.ops.aten


@dataclass
class Ends:
    """The two ends of a step: the loss behind the feature, and the learned rows that AdamW moves."""

    features: Tensor  # [S, D] stored
    targets: Tensor  # [S, D] unit rows or zero
    live: Tensor  # [S, 1] the scale of the gradient, 0 where the target is a zero row
    grad_features: Tensor  # [S, D] stored
    losses: Tensor  # [steps, S]
    unit: Tensor  # [S, D]
    step: Tensor  # [1] int64, the row of `losses` and `rates` that is next
    step_now: Tensor  # [1] int64
    rates: Tensor  # [2, steps]: lr / (1 − β1^(i+1)), sqrt(1 − β2^(i+1))
    tokens: Tensor  # [S, R, T]
    exp_avg: Tensor  # [S, R, T]
    exp_avg_sq: Tensor  # [S, R, T]
    grad: Tensor  # [m·S, T] stored
    inputs: Tensor  # [m·S, T] stored
    base: Tensor  # [m, 1 or S, T]
    source: tuple[int, ...]  # [m] which vector a slot adds
    index: Tensor  # [m] int32, the same
    spread: Tensor  # [R, m] ones where a slot adds a vector
    grad_scale: float = 1.0  # of the loss, times 1/grad_factor
    grad_factor: float = 1.0  # a power of two; not 1 where float16 would lose small gradients
    lr: float = 0.0
    weight_decay: float = 0.0

    @property
    def one_each(self) -> bool:
        """Slot i adds vector i, as in every text template."""
        return self.source == tuple(range(self.tokens.shape[1]))


class TorchPieces:
    """Every piece as a few operators of PyTorch, on any device and in any floating dtype."""

    def __init__(self, compute: torch.dtype, stored: torch.dtype, scratch: Scratch, activation: str) -> None:
        self.compute, self.stored, self.scratch, self.activation = compute, stored, scratch, activation
        self._eps: dict[float, Tensor] = {}

    # -- products ------------------------------------------------------------------------------------

    def product(self, x: Tensor, linear: Linear, out: Tensor) -> None:
        """x·W + b."""
        if linear.bias is None:
            torch.mm(x, linear.weight, out=out)
        else:
            torch.addmm(linear.bias, x, linear.weight, out=out)

    def product_grad(self, grad: Tensor, linear: Linear, out: Tensor) -> None:
        torch.mm(grad, linear.weight.t(), out=out)

    # -- layer norm ----------------------------------------------------------------------------------

    def norm_state(self, rows: int, width: int) -> tuple[Tensor, Tensor]:
        """x̂ [N, T] and rstd [N, 1], kept for the way back."""
        hat = torch.zeros(rows, width, dtype=self.compute, device=self.scratch.device)
        return hat, hat.new_zeros(rows, 1)

    def norm(
        self,
        x: Tensor,  # [N, T]
        delta: Tensor | None,  # [N, T]
        total: Tensor | None,  # [N, T] written: x + delta
        norm: Norm,
        y: Tensor,  # [N, T] written
        state: Any,
    ) -> None:
        """y = LN(x (+ delta))."""
        if delta is not None and total is not None:
            x = torch.add(x, delta, out=total)
        hat, rstd = state
        mean = self.scratch.take("mean", tuple(rstd.shape), self.compute)
        torch.mean(x, -1, keepdim=True, dtype=self.compute, out=mean)
        torch.sub(x, mean, out=hat)
        torch.linalg.vector_norm(hat, dim=-1, keepdim=True, out=rstd)
        torch.addcmul(self._epsilon(norm.eps), rstd, rstd, value=1 / x.shape[1], out=rstd)
        rstd.rsqrt_()
        hat.mul_(rstd)
        torch.addcmul(norm.bias, hat, norm.weight, out=y)

    def norm_grad(
        self,
        grad: Tensor,  # [N, T]
        residual: Tensor | None,  # [N, T] added
        norm: Norm,
        state: Any,
        x: Tensor,  # [N, T] as it was normed
        out: Tensor,  # [N, T] written
    ) -> None:
        hat, rstd = state
        pair = self.scratch.take("pair", (2, *hat.shape), self.compute)
        means = self.scratch.take("means", (2, *rstd.shape), self.compute)
        u, work = pair
        torch.mul(grad, norm.weight, out=u)
        torch.mul(u, hat, out=work)
        torch.mean(pair, -1, keepdim=True, out=means)
        torch.addcmul(u, hat, means[1], value=-1, out=work)
        work.sub_(means[0])
        if residual is None:
            torch.mul(work, rstd, out=out)
        else:
            torch.addcmul(residual, work, rstd, out=out)

    def _epsilon(self, value: float) -> Tensor:
        if value not in self._eps:
            self._eps[value] = torch.full((), value, dtype=self.compute, device=self.scratch.device)
        return self._eps[value]

    def add(self, x: Tensor, delta: Tensor, out: Tensor) -> None:
        torch.add(x, delta, out=out)

    # -- activation ----------------------------------------------------------------------------------

    def activate(self, h: Tensor, y: Tensor) -> None:
        """y = act(h); afterwards h holds what `activate_grad` asks for."""
        if self.activation == "quick_gelu":  # h·σ(1.702·h) = silu(1.702·h)/1.702
            h.mul_(_QUICK)
            _aten.silu.out(h, out=y)
            y.mul_(1 / _QUICK)
        else:
            _aten.gelu.out(h, approximate=self._approximate, out=y)

    def activate_grad(self, grad: Tensor, h: Tensor) -> None:
        """grad ← grad·act′."""
        if self.activation == "quick_gelu":
            _aten.silu_backward.grad_input(grad, h, grad_input=grad)
        else:
            _aten.gelu_backward.grad_input(grad, h, approximate=self._approximate, grad_input=grad)

    @property
    def _approximate(self) -> str:
        return "tanh" if self.activation == "gelu_tanh" else "none"

    # -- attention -----------------------------------------------------------------------------------

    def attention_state(self, heads: Heads) -> Any:
        return TorchAttention(heads, self.stored, self.scratch)

    def attention(self, state: Any, o: Tensor) -> None:  # [queries·S, T] written
        """o = softmax(q·Kᵀ/√d)·V over [prefix | visible slots]."""
        state.forward(o)

    def attention_grad(
        self,
        state: Any,
        grad_o: Tensor,  # [queries·S, T]
        grad_qkv: Tensor,  # [n·S, 3T] written; the queries' part not with a constant query
    ) -> None:
        state.backward(grad_o, grad_qkv)

    # -- the two ends --------------------------------------------------------------------------------

    def cosine_loss(self, e: Ends) -> None:
        """t̂, the loss 1 − t̂·f into row `step`, and its gradient with respect to t."""
        column, wide = tuple(e.live.shape), tuple(e.unit.shape)
        inverse = self.scratch.take("inverse", column, self.compute)
        cosine = self.scratch.take("cosine", column, self.compute)
        zero = self.scratch.take("zero", column, torch.bool)
        work = self.scratch.take("loss work", wide, self.compute)
        torch.linalg.vector_norm(e.features, dim=-1, keepdim=True, dtype=self.compute, out=inverse)
        torch.eq(inverse, 0, out=zero)
        inverse.reciprocal_().masked_fill_(zero, 0)
        torch.mul(e.features, inverse, out=e.unit)
        torch.mul(e.unit, e.targets, out=work)
        torch.sum(work, -1, keepdim=True, out=cosine)
        torch.mul(e.unit, cosine, out=work)
        work.sub_(e.targets)
        inverse.mul_(e.live)
        torch.mul(work, inverse, out=e.grad_features)
        cosine.neg_().add_(1)
        e.losses.index_copy_(0, e.step, cosine.view(1, -1))

    def gather(self, e: Ends) -> Tensor:  # [S, R, T], a view
        """The gradient of each vector, summed over the slots that it feeds."""
        samples, vectors, width = e.tokens.shape
        slots = len(e.source)
        own = self.scratch.take("slot gradients", (slots, samples, width), self.compute)
        own.copy_(e.grad.view(slots, samples, width))  # first: the product would be one of e.grad's type
        if e.grad_factor != 1:
            own.mul_(e.grad_factor)
        if e.one_each:
            return own.transpose(0, 1)
        total = self.scratch.take("gradients", (vectors, samples, width), self.compute)
        # Not index_add_, which sums in any order on a GPU.
        torch.mm(e.spread, own.view(slots, -1), out=total.view(vectors, -1))
        return total.transpose(0, 1)

    def adamw(self, e: Ends) -> None:
        """One step of AdamW as PyTorch states it, the next inputs, and the count."""
        g = self.gather(e)
        now = self.scratch.take("rates", (2, 1), self.compute)
        move = self.scratch.take("move", tuple(e.tokens.shape), self.compute)
        torch.index_select(e.rates, 1, e.step, out=now)
        e.exp_avg.lerp_(g, 1 - 0.9)
        e.exp_avg_sq.mul_(0.999).addcmul_(g, g, value=1 - 0.999)
        torch.sqrt(e.exp_avg_sq, out=move)
        move.div_(now[1]).add_(1e-8)
        torch.div(e.exp_avg, move, out=move)
        e.tokens.mul_(1 - e.lr * e.weight_decay).addcmul_(move, now[0], value=-1)
        self.write_inputs(e)
        e.step.add_(1)

    def write_inputs(self, e: Ends) -> None:
        """base + v of every learned slot."""
        samples, _, width = e.tokens.shape
        slots = len(e.source)
        rows = e.tokens.transpose(0, 1)  # [R, S, T]
        if not e.one_each:
            picked = self.scratch.take("rows", (slots, samples, width), self.compute)
            rows = torch.index_select(rows, 0, e.index, out=picked)
        torch.add(e.base, rows, out=e.inputs.view(slots, samples, width))

"""The pieces of an inversion step on a device, in plain PyTorch: what stands between the products.

step.py strings them together, cuda.py replaces them by the kernels of csrc/tower_descent. A piece writes into
tensors that it is given, allocates nothing and reads nothing back, so that a CUDA graph can repeat it.
`compute` is float32 (float64 in a float64 tower) and holds sums, statistics, the loss and the learned rows;
`stored` is the type of activations and products.

Letters: N rows · T tower width · M hidden width · D feature width · S samples · R learned vectors ·
n slots · m learned slots · P prefix rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from semobridge_ext._engines.tower_descent.spec import Linear, Norm
from semobridge_ext._engines.tower_descent.tensors import Ends, Heads
from semobridge_ext.runtime import adamw
from semobridge_ext.runtime.scratch import Scratch

_QUICK = 1.702
_aten = torch.ops.aten


class TorchAttention:
    """One layer's attention as batched products over copies of the heads, for any number of slots.

    p = softmax(q·Kᵀ/√d)    o = p·V        over  [prefix | visible own slots]
    """

    def __init__(self, heads: Heads, stored: torch.dtype, scratch: Scratch) -> None:
        self.heads, self.stored, self.scratch = heads, stored, scratch
        samples, slots, prefix = heads.samples, heads.slots, heads.prefix_rows
        self.queries, self.width = len(heads.visible), heads.model // heads.heads
        self.batch, self.keys = samples * heads.heads, prefix + slots
        self.grid = (samples, heads.heads)

        def new(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=stored, device=scratch.device)

        self.q = new(*self.grid, self.queries, self.width)
        self.kv = new(2, *self.grid, self.keys, self.width)
        self.p = new(self.batch, self.queries, self.keys)
        if heads.prefix is not None:
            rows = heads.prefix.view(2, 1, prefix, heads.heads, self.width)
            self.kv[:, :, :, :prefix] = rows.transpose(2, 3)
        self.mask = None
        if any(len(own) < slots for own in heads.visible):
            seen = [[j < prefix or j - prefix in own for j in range(self.keys)] for own in heads.visible]
            hidden = torch.tensor(seen).logical_not()
            mask = torch.zeros(hidden.shape, dtype=stored).masked_fill_(hidden, float("-inf"))
            self.mask = mask.to(scratch.device)

    def _query_rows(self, qkv: Tensor) -> Tensor:  # [S, heads, queries, d] of [n·S, 3T]
        h = self.heads
        rows = qkv[: self.queries * h.samples, : h.model]
        return rows.view(self.queries, *self.grid, self.width).permute(1, 2, 0, 3)

    def _key_rows(self, qkv: Tensor) -> Tensor:  # [2, S, heads, n, d] of [n·S, 3T]
        h = self.heads
        return qkv[:, h.model :].view(h.slots, h.samples, 2, h.heads, self.width).permute(2, 1, 3, 0, 4)

    def _flat(self, x: Tensor) -> Tensor:  # [S·heads, queries, d] of [queries·S, T], a view
        return x.view(self.queries, self.batch, self.width).transpose(0, 1)

    def forward(self, o: Tensor) -> None:
        prefix = self.heads.prefix_rows
        torch.mul(self._query_rows(self.heads.qkv), self.width**-0.5, out=self.q)
        self.kv[:, :, :, prefix:].copy_(self._key_rows(self.heads.qkv))
        k, v = self.kv.view(2, self.batch, self.keys, self.width)
        scores = self.scratch.take("scores", tuple(self.p.shape), self.stored)
        torch.bmm(self.q.view(self.batch, self.queries, self.width), k.transpose(1, 2), out=scores)
        if self.mask is not None:
            scores.add_(self.mask)
        torch.softmax(scores, -1, out=self.p)
        torch.bmm(self.p, v, out=self._flat(o))

    def backward(self, grad_o: Tensor, grad_qkv: Tensor) -> None:
        h, prefix = self.heads, self.heads.prefix_rows
        k, v = self.kv.view(2, self.batch, self.keys, self.width)
        grad = self._flat(grad_o)
        dp = self.scratch.take("scores", tuple(self.p.shape), self.stored)
        ds = self.scratch.take("ds", tuple(self.p.shape), self.stored)
        torch.bmm(grad, v.transpose(1, 2), out=dp)
        torch.ops.aten._softmax_backward_data.out(dp, self.p, -1, self.stored, grad_input=ds)
        own = self.scratch.take("key gradients", (2, self.batch, h.slots, self.width), self.stored)
        q = self.q.view(self.batch, self.queries, self.width)  # holds 1/√d
        torch.bmm(ds[:, :, prefix:].transpose(1, 2), q, out=own[0])
        torch.bmm(self.p[:, :, prefix:].transpose(1, 2), grad, out=own[1])
        self._key_rows(grad_qkv).copy_(own.view(2, *self.grid, h.slots, self.width))
        if h.constant_query:
            return
        grad_q = self.scratch.take("query gradients", tuple(q.shape), self.stored)
        torch.bmm(ds, k, out=grad_q)
        torch.mul(grad_q.view(self.q.shape), self.width**-0.5, out=self._query_rows(grad_qkv))
        if self.queries < h.slots:
            grad_qkv[self.queries * h.samples :, : h.model].zero_()


class TorchTowerPieces:
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
        """x̂ [N, T] and rstd [N, 1], kept for the backward pass."""
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
        adamw.update(
            e.tokens, g, e.exp_avg, e.exp_avg_sq, keep=1 - e.lr * e.weight_decay, rate=now[0], root=now[1],
            work=move, one_launch=True,
        )  # fmt: skip
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

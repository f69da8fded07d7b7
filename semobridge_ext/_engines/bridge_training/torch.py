"""The matrix products of a SeMoBridge-T step and what lies between them, in plain PyTorch.

cpu.py takes the products and the wide pieces to the core of the CPU, cuda.py all pieces to CUDA kernels.
Every piece writes into tensors that it is given, workspaces are made once and kept, nothing is read back:
a CUDA graph can repeat a step. No sum depends on the order in which threads finish.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from semobridge_ext._engines.bridge_training.spec import Batch, Chunk
from semobridge_ext.runtime import adamw
from semobridge_ext.runtime.scratch import Scratch
from semobridge_ext.runtime.step_graph import WARM_UP

CHUNK_VALUES = 1 << 20  # logits of a chunk of rows: 4 MiB, which stay in cache
CHUNK_VALUES_CUDA = 1 << 26  # a GPU gains nothing from a chunk in cache, but pays for every launch


class TorchTrainingPieces:
    """Plain PyTorch, any device and dtype."""

    loss_per_row = False  # whether the losses over C rows come as C values or as one

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.longest = 0  # rows of the longest chunk
        self.scratch = Scratch(batch.labels.device)
        self._offsets: dict[Chunk, Tensor] = {}
        self._table = batch.counts.new_empty(0, 3)

    @property
    def chunk_values(self) -> int:
        return CHUNK_VALUES_CUDA if self.batch.labels.is_cuda else CHUNK_VALUES

    def product(self, a: Tensor, b: Tensor, out: Tensor) -> None:
        """out = a·b."""
        torch.mm(a, b, out=out)

    def add_product(self, a: Tensor, b: Tensor, out: Tensor) -> None:
        """out += a·b."""
        out.addmm_(a, b)

    def wide_halves(self, shots: Tensor, wide: int) -> Any:
        """What makes the wide products of halves (halves.py); None: they are float32's."""
        return None

    def _take(self, name: str, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return self.scratch.take(name, shape, dtype or self.batch.counts.dtype)

    def _zero_to_zero(self, values: Tensor, tested: Tensor) -> Tensor:
        """`values` with 0 where `tested` is 0."""
        zero = self._take("zero", *tested.shape, dtype=torch.bool)
        return values.masked_fill_(torch.eq(tested, 0, out=zero), 0)

    def _reciprocal(self, x: Tensor) -> Tensor:
        return self._zero_to_zero(torch.reciprocal(x, out=self._take("reciprocal", *x.shape)), x)

    def _class_sums(self, x: Tensor, chunk: Chunk, out: Tensor) -> None:
        """Σ over the rows of each class; unlike index_add_ in one order on every device."""
        if chunk not in self._offsets:
            first, last = chunk
            self._offsets[chunk] = self.batch.offsets[first : last + 1] - self.batch.bounds[first]
        offsets = self._offsets[chunk]
        torch.ops.aten.segment_reduce.out(x, "sum", offsets=offsets, unsafe=True, initial=0, out=out)

    def _all(self) -> Chunk:
        return 0, len(self.batch.counts)

    def class_means(self, e: Tensor, tau: Tensor | None, r: Tensor, mean: Tensor) -> None:
        """e ← e + τ_y; r = ‖e‖; mean_c = mean over the rows of c of e/r."""
        rows = self._take("rows", *e.shape)
        if tau is not None:
            e.add_(torch.index_select(tau, 0, self.batch.labels, out=rows))
        torch.linalg.vector_norm(e, dim=1, out=r)
        torch.mul(e, self._reciprocal(r).unsqueeze(1), out=rows)
        self._class_sums(rows, self._all(), mean)
        self._zero_to_zero(mean.div_(self.batch.counts), self.batch.counts)

    def row_lengths(self, a: Tensor, b: Tensor, q: Tensor, inverse: Tensor) -> None:
        """q = sqrt(max(a·b, 0)); inverse = 1/q, 0 where q is 0."""
        torch.sum(torch.mul(a, b, out=self._take("rows", *a.shape)), dim=1, out=q)
        q.clamp_(min=0).sqrt_()
        inverse.copy_(self._reciprocal(q))

    def row_loss(
        self, chunk: Chunk, x: Tensor, factor: float, scale: Tensor, loss: Tensor,
        add: Tensor | None = None, dot: Tensor | None = None, sums: Tensor | None = None,
    ) -> None:  # fmt: skip
        """``factor``·cross-entropy of a chunk's logits (x + add_y)·scale; x ← the gradient of x.

        loss [N]: of each row. dot [N]: Σ_c of the logits times their gradients. sums [C, C]: Σ over the
        rows of a class of x. Of all three the chunk's part is written.
        """
        begin, end = self.batch.bounds[chunk[0]], self.batch.bounds[chunk[1]]
        y, row_scale = self.batch.labels[begin:end], scale[begin:end].unsqueeze(1)
        # At the longest chunk's size, so that no chunk outgrows another's.
        longest = max(self.longest, end - begin)
        log_p = self._take("log_p", longest, x.shape[1])[: end - begin]
        if add is not None:
            x.add_(torch.index_select(add, 0, y, out=log_p))
        logits = x.mul_(row_scale)
        torch.log_softmax(logits, dim=1, out=log_p)
        own = self._take("own", longest, 1)[: end - begin]
        torch.mul(torch.gather(log_p, 1, y.unsqueeze(1), out=own).squeeze(1), -factor, out=loss[begin:end])
        g = log_p.exp_().mul_(factor)
        g.scatter_(1, y.unsqueeze(1), own.exp_().sub_(1).mul_(factor))
        if dot is not None:
            torch.sum(logits.mul_(g), dim=1, out=dot[begin:end])
        torch.mul(g, row_scale, out=x)
        if sums is not None:
            self._class_sums(x, chunk, sums[chunk[0] : chunk[1]])

    def shot_grads(
        self, e: Tensor, h: Tensor, r: Tensor, q: Tensor, inverse_q: Tensor, dot: Tensor | None,
        grad_mean: Tensor, grad_tau: Tensor | None, extra: Tensor | None,
    ) -> None:  # fmt: skip
        """With u = e/r, m = grad_mean_y:  h ← (m − u(u·m))/(K·r) − (dot/q²)·h;  grad_τ = Σ_k h + extra.

        May overwrite e and grad_mean.
        """
        inverse, m = self._reciprocal(r).unsqueeze(1), self._take("rows", *e.shape)
        torch.index_select(grad_mean.div_(self.batch.counts), 0, self.batch.labels, out=m)
        if dot is None:
            torch.mul(m, inverse, out=h)
        else:
            ratio = torch.mul(inverse_q, inverse_q, out=self._take("ratio", *q.shape)).mul_(dot).neg_()
            h.mul_(ratio.unsqueeze(1)).addcmul_(m, inverse)
        unit, along = e.mul_(inverse), self._take("along rows", len(e), 1)
        torch.sum(m.mul_(unit), dim=1, keepdim=True, out=along)
        h.addcmul_(unit, along.mul_(inverse), value=-1)
        if grad_tau is not None:
            self._class_sums(h, self._all(), grad_tau)
            if extra is not None:
                grad_tau.add_(extra)

    def unit_rows(self, x: Tensor, unit: Tensor, norms: Tensor) -> None:
        """unit = x/‖x‖, norms [C, 1] = ‖x‖; a zero row stays one."""
        torch.linalg.vector_norm(x, dim=1, keepdim=True, out=norms)
        self._zero_to_zero(torch.div(x, norms, out=unit), norms)

    def unit_grad(self, grad: Tensor, unit: Tensor, norms: Tensor, into: Tensor | None = None) -> None:
        """The gradient of x from that of x/‖x‖, in place of ``grad`` or added to ``into``."""
        rows = self._take("class rows", *unit.shape)
        along = self._take("along", len(unit), 1)
        torch.sum(torch.mul(unit, grad, out=rows), dim=1, keepdim=True, out=along)
        grad.sub_(torch.mul(unit, along, out=rows)).mul_(self._reciprocal(norms))
        if into is not None:
            into.add_(grad)

    def diagonal_loss(self, logits: Tensor, factor: float, loss: Tensor) -> Tensor:
        """``factor``·mean CE(logits, own class) of [C, C] logits; returns where their gradient lies."""
        log_p = torch.log_softmax(logits, dim=1, out=self._take("square", *logits.shape))
        torch.mean(log_p.diagonal(), dim=0, keepdim=True, out=loss).mul_(-factor)
        grad = log_p.exp_().mul_(factor / len(logits))
        grad.diagonal().sub_(factor / len(logits))
        return grad

    def bias_loss(self, tau: Tensor, weight: float, grad_tau: Tensor, loss: Tensor) -> None:
        """weight·mean_c (‖τ_c‖ − mean‖τ‖)²; its gradient, 0 at τ_c = 0, is added to ``grad_tau``."""
        unit = self._take("class rows", *tau.shape)
        norms, mean = self._take("tau norms", len(tau), 1), self._take("tau mean", 1, 1)
        self.unit_rows(tau, unit, norms)
        deviation = norms.sub_(torch.mean(norms, dim=0, keepdim=True, out=mean))
        # The mean's own derivative cancels: the deviations sum to zero.
        grad_tau.add_(unit.mul_(deviation), alpha=2 * weight / len(tau))
        torch.mean(deviation.square_(), dim=(0, 1), out=loss.view(())).mul_(weight)

    def total_loss(
        self, parts: dict[str, Tensor], flat: Tensor, count: Tensor, now: Tensor, loss: Tensor, losses: Tensor
    ) -> None:
        """loss [1] = losses[count] = the sum of all parts (``flat``: one tensor of them); now ← count."""
        loss.zero_()
        for part in parts.values():
            each = part
            if part.numel() != 1:
                each = torch.sum(part, dim=0, keepdim=True, out=self._take("part", 1))
            loss.add_(each)
        losses.index_copy_(0, count, loss)
        now.copy_(count)

    # -- optimiser ---------------------------------------------------------------------------------

    def plan(self, rates: Sequence[float], decay: float, like: Tensor) -> None:
        """Learning rates of all steps to come, in a table on the device.

        A row is 1 − lr·decay, lr/(1 − β1^n), sqrt(1 − β2^n): a step reads what changes from there.
        """
        planned = [*rates, *[0.0] * (WARM_UP + 1)]  # warm-up may run past the end
        rows = [(1 - lr * decay, *adamw.corrections(lr, n)) for n, lr in enumerate(planned, 1)]
        self._table = torch.tensor(rows, dtype=torch.float64).to(like.device, like.dtype)

    def adamw(
        self, parameter: Tensor, gradient: Tensor, first: Tensor, second: Tensor, now: Tensor, count: Tensor
    ) -> None:
        """Step ``now`` as ``torch.optim.AdamW`` takes it; count ← now + 1."""
        row = torch.index_select(self._table, 0, now, out=self._take("factors", 1, 3))
        keep, rate, root = row[0].unbind()
        work = self._take("work", *second.shape)
        adamw.update(parameter, gradient, first, second, keep=keep, rate=rate, root=root, work=work)
        torch.add(now, 1, out=count)

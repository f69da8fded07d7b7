"""The step for few rows: each product with what stands before and behind it in one launch.

    qkv = LN1(x)·Wqkv + b      middle = x + o·Wo + b      h = LN2(middle)·W1 + b, hidden = act(h)
    x′ = middle + hidden·W2 + b

A step of few rows is bound by launches and by reading the weights. Here a norm is taken in the product
that follows it: its statistics come, tile by tile, from the product before it
(csrc/tower_descent/cuda_few_rows.h). So a layer is ten launches in place of sixteen, four products and the
attention each way, and a matrix is read by the whole device at once. More rows are cuBLAS's, in step.py's
sequence; plans.py chooses.

Letters as in torch.py.
"""

from __future__ import annotations

from torch import Tensor

from semobridge_ext._engines.tower_descent.buffers import Pass
from semobridge_ext._engines.tower_descent.cuda import CudaTowerPieces
from semobridge_ext._engines.tower_descent.products import Before, Behind
from semobridge_ext._engines.tower_descent.rows import SlotRows
from semobridge_ext._engines.tower_descent.spec import Linear
from semobridge_ext._engines.tower_descent.step import Plan
from semobridge_ext._engines.tower_descent.weights import LaunchedWeights

# Two tiles of 64. With more, each matrix is read from L2 more often than cuBLAS's larger tiles read it; in
# wider towers, whose products are long, that costs more than the launches that are saved.
FEW_ROWS, WIDE = 128, 640


def takes_few(weights: LaunchedWeights, rows: SlotRows, samples: int) -> bool:
    """Whether the launches of this file fit: few rows, and matrices whose rows are whole 16 bytes."""
    most = FEW_ROWS if weights.tower.width <= WIDE else FEW_ROWS // 2
    linears = [linear for layer in weights.layers for linear in (layer.qkv, layer.out, layer.fc, layer.proj)]
    linears += [] if weights.projection is None else [weights.projection]
    return len(rows.source) * samples <= most and all(_aligned(linear.weight) for linear in linears)


def _aligned(weight: Tensor) -> bool:  # [K, M], either way round
    step = 16 // weight.element_size()
    wide = max(weight.stride())
    sizes = (*weight.shape, wide, weight.storage_offset())
    return min(weight.stride()) == 1 and all(size % step == 0 for size in sizes)


class FewRowsPlan(Plan):
    """Plan's step in fewer launches; the same buffers, but for those that no launch needs."""

    pieces: CudaTowerPieces

    def _multiply(self, before: Before, linear: Linear, behind: Behind) -> None:
        self.pieces.multiply(before, linear.weight, linear.bias, behind)

    def _multiply_grad(self, before: Before, linear: Linear, behind: Behind) -> None:
        self.pieces.multiply(before, linear.weight.t(), None, behind)

    # -- forward -------------------------------------------------------------------------------

    def forward(self) -> None:
        """inputs → features."""
        p, w = self.pieces, self.weights
        if w.norm_pre is not None:
            p.norm(self.raw, None, None, w.norm_pre, self.x0[self.learned], self.pre)
        behind = [*(now.x for now in self.passes[1:]), self.last]
        for now, total in zip(self.passes, behind, strict=True):
            self._forward_fused(now, total)
        last = Before(self.last, w.norm_final, self.final)
        if w.projection is not None:
            self._multiply(last, w.projection, Behind("store", self.ends.features))
        elif w.norm_final is not None:
            p.norm(self.last, None, None, w.norm_final, self.normed, self.final)

    def _forward_fused(self, now: Pass, total: Tensor) -> None:
        p, layer, out = self.pieces, now.layer, now.out_rows
        x = Before(now.x, layer.norm1, now.norm1)
        if now is self.passes[0]:  # no product is before it
            y = self._take("y", self.all_rows, self.width)[now.rows]
            p.norm(now.x[now.rows], None, None, layer.norm1, y, now.norm1)
            x = Before(y)
        o = self._take("o", out, self.width)
        hidden = self._take("hidden", *now.h.shape)
        self._multiply(x, layer.qkv, Behind("store", now.qkv[now.rows, now.projected]))
        p.attention(now.attention, o)
        residual = now.x[:out] if layer.query is None else None
        self._multiply(Before(o), layer.out, Behind("sum", now.middle, other=residual))
        middle = Before(now.middle, layer.norm2, now.norm2)
        self._multiply(middle, layer.fc, Behind("activate", now.h, second=hidden))
        self._multiply(Before(hidden), layer.proj, Behind("sum", total, other=now.middle))

    # -- backward --------------------------------------------------------------------------------

    def backward(self) -> None:
        """grad_features → grad of the inputs."""
        p, w, e = self.pieces, self.weights, self.ends
        grad = Before(e.grad_features)
        top = self.dx[: self.samples]
        if w.projection is not None:
            y = self._take("grad", self.samples, self.width)
            behind = Behind("store", y)
            grad = Before(y)
            if w.norm_final is not None:
                behind = Behind("norm_grad", y, w.norm_final, self.final, other=self.last)
                grad = Before(y, w.norm_final, self.final, normed=self.last, grad=top)
            self._multiply_grad(Before(e.grad_features), w.projection, behind)
        elif w.norm_final is not None:
            p.norm_grad(e.grad_features, None, w.norm_final, self.final, self.last, top)
            grad = Before(top)
        for now in reversed(self.passes):
            grad = self._backward_fused(now, grad)
        if w.norm_pre is not None:
            p.norm_grad(self.dx[self.learned], None, w.norm_pre, self.pre, self.raw, self.grad_raw)

    def _backward_fused(self, now: Pass, grad: Before) -> Before:
        """What the layer below multiplies first; below the first layer, its rows of dx are written."""
        p, layer, out = self.pieces, now.layer, now.out_rows
        hidden = self._take("hidden", *now.h.shape)
        da = self._take("da", self.all_rows, self.width)
        do = self._take("do", out, self.width)
        dqkv = self._take("dqkv", self.all_rows, 3 * self.width)
        middle = self._take("pooled dm", out, self.width) if now.residual is None else now.residual[:out]
        self._multiply_grad(grad, layer.proj, Behind("activate_grad", hidden, other=now.h))
        norm2 = Behind("norm_grad", da[:out], layer.norm2, now.norm2, other=now.middle)
        self._multiply_grad(Before(hidden), layer.fc, norm2)
        given = Before(
            da[:out], layer.norm2, now.norm2, normed=now.middle, residual=grad.operand, grad=middle
        )
        self._multiply_grad(given, layer.out, Behind("store", do))
        p.attention_grad(now.attention, do, dqkv)
        x, da, dx = now.x[now.rows], da[now.rows], self.dx[now.rows]
        residual = None if now.residual is None else now.residual[now.rows]
        changed = Before(dqkv[now.rows, now.projected])
        if now is self.passes[0]:
            self._multiply_grad(changed, layer.qkv, Behind("store", da))
            p.norm_grad(da, residual, layer.norm1, now.norm1, x, dx)
            return Before(dx)
        self._multiply_grad(changed, layer.qkv, Behind("norm_grad", da, layer.norm1, now.norm1, other=x))
        return Before(da, layer.norm1, now.norm1, normed=x, residual=residual, grad=dx)

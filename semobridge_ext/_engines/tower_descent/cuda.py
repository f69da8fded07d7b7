"""The pieces of an inversion step as CUDA kernels (csrc/tower_descent), one launch each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from semobridge_ext._engines.tower_descent.products import BEHIND, Before, Behind
from semobridge_ext._engines.tower_descent.spec import ACTIVATIONS, Norm
from semobridge_ext._engines.tower_descent.tensors import Ends, Heads
from semobridge_ext._engines.tower_descent.torch import TorchAttention, TorchTowerPieces
from semobridge_ext.runtime.adamw import BETAS, EPS
from semobridge_ext.runtime.backend import _C, DTYPE_CODES
from semobridge_ext.runtime.views import address, place, row_view, view

# Eight lanes take a query through all keys, which a mask of 64 bits names. With more slots than this the
# batched products of PyTorch, on tensor cores, fit better.
FEW_SLOTS = 64
WIDEST_HEAD = 128
_NOTHING = row_view(None)


class CudaAttention:
    """What one layer's attention keeps between forward and backward, and who sees whom."""

    def __init__(self, heads: Heads, pieces: TorchTowerPieces) -> None:
        self.heads, device = heads, pieces.scratch.device
        masks = [sum(1 << slot for slot in own) for own in heads.visible]
        signed = [mask - (1 << 64) if mask >> 63 else mask for mask in masks]  # the same bits
        self.visible = torch.tensor(signed, dtype=torch.int64).to(device)
        # [S·heads, queries] log Σ exp of a query's scores, from which p is made anew.
        self.lse = torch.zeros(heads.samples * heads.heads, len(masks), dtype=torch.float32, device=device)

    def arguments(self) -> tuple[Any, ...]:
        h = self.heads
        return (
            view(h.qkv), h.samples, h.heads, h.slots, len(h.visible), h.prefix_rows, address(h.prefix),
            self.visible.data_ptr(), self.lse.data_ptr(),
        )  # fmt: skip


class CudaTowerPieces(TorchTowerPieces):
    """Products by PyTorch, everything between by the native core; storage float32, float16 or bfloat16.

    ``recording`` takes the core's place while a plan's launches are written down (one_launch.py).
    """

    recording: Any = None

    @property
    def native(self) -> Any:
        return _C if self.recording is None else self.recording

    @staticmethod
    def blocks_at_once(stored: torch.dtype, device: torch.device) -> int:
        """Blocks of a step of one launch that the device holds; 0: there is none for it, or in this type."""
        return int(_C.tower_step_cuda_blocks(DTYPE_CODES[stored], device.index or 0))

    def norm_state(self, rows: int, width: int) -> tuple[Tensor, Tensor]:
        """Mean and rstd [N]; x itself is kept by the caller."""
        mean, rstd = torch.zeros(2, rows, dtype=torch.float32, device=self.scratch.device)
        return mean, rstd

    def norm(
        self, x: Tensor, delta: Tensor | None, total: Tensor | None, norm: Norm, y: Tensor, state: Any
    ) -> None:
        mean, rstd = state
        self.native.layer_norm_cuda(
            view(x), _NOTHING if delta is None else view(delta), _NOTHING if total is None else view(total),
            norm.weight.data_ptr(), norm.bias.data_ptr(), norm.eps, view(y), mean.data_ptr(),
            rstd.data_ptr(), *place(x),
        )  # fmt: skip

    def norm_grad(
        self, grad: Tensor, residual: Tensor | None, norm: Norm, state: Any, x: Tensor, out: Tensor
    ) -> None:
        mean, rstd = state
        self.native.layer_norm_grad_cuda(
            view(x), view(grad), norm.weight.data_ptr(), mean.data_ptr(), rstd.data_ptr(),
            _NOTHING if residual is None else view(residual), view(out), *place(x),
        )  # fmt: skip

    def _side(self, norm: Norm | None, state: Any, rows: int, cols: int = 0) -> tuple[Any, ...]:
        """A norm before or behind a product: weight, bias, eps, mean, rstd, and statistics of its tiles.

        No launch both reads and writes these, so there is one buffer; it is as long as its writer needs it.
        """
        width = cols if norm is None else norm.weight.shape[0]
        length = self.native.few_rows_cuda_tiles(width) * rows * 2
        pairs = self.scratch.take("stats", (length,), torch.float32).data_ptr() if length else 0
        if norm is None:
            return 0, 0, 0.0, 0, 0, pairs
        mean, rstd = state
        return (
            norm.weight.data_ptr(), norm.bias.data_ptr(), norm.eps, mean.data_ptr(), rstd.data_ptr(), pairs,
        )  # fmt: skip

    def multiply(
        self,
        before: Before,
        weight: Tensor,  # [K, M], either way round in memory
        bias: Tensor | None,  # [M]
        behind: Behind,
    ) -> None:
        """behind(before(x)·W), one launch.

        The statistics that a "sum" or "norm_grad" leaves are for the next product with such a norm before it.
        """
        (rows, k), cols = before.x.shape, weight.shape[1]
        transposed = weight.stride(1) != 1
        sums = self.scratch.take("sums", (self.native.few_rows_cuda_sums(rows, k, cols),), torch.float32)
        tickets = self.scratch.take("tickets", (self.native.few_rows_cuda_tickets(rows, cols),), torch.int32)
        left = (
            before.kind, self._side(before.norm, before.state, rows), row_view(before.normed),
            row_view(before.residual), row_view(before.grad),
        )  # fmt: skip
        right = (
            BEHIND.index(behind.kind),
            self._side(behind.norm, behind.state, rows, cols if behind.kind == "sum" else 0), address(bias),
            row_view(behind.other), ACTIVATIONS.index(self.activation), row_view(behind.second),
        )  # fmt: skip
        self.native.few_rows_cuda(
            view(before.x), view(weight.t() if transposed else weight), transposed, left, right,
            view(behind.y), sums.data_ptr(), tickets.data_ptr(), *place(before.x),
        )  # fmt: skip

    def activate(self, h: Tensor, y: Tensor) -> None:
        """h stays: the slope is made of it where it is needed."""
        self.native.activate_cuda(ACTIVATIONS.index(self.activation), view(h), view(y), *place(h))

    def activate_grad(self, grad: Tensor, h: Tensor) -> None:
        self.native.activate_grad_cuda(ACTIVATIONS.index(self.activation), view(h), view(grad), *place(h))

    def attention_state(self, heads: Heads) -> Any:
        if heads.slots > FEW_SLOTS or heads.model // heads.heads > WIDEST_HEAD:
            return super().attention_state(heads)
        return CudaAttention(heads, self)

    def attention(self, state: Any, o: Tensor) -> None:
        if isinstance(state, TorchAttention):
            return super().attention(state, o)
        self.native.attention_cuda(*state.arguments(), view(o), *place(o))

    def attention_grad(self, state: Any, grad_o: Tensor, grad_qkv: Tensor) -> None:
        if isinstance(state, TorchAttention):
            return super().attention_grad(state, grad_o, grad_qkv)
        self.native.attention_grad_cuda(
            *state.arguments(), view(grad_o), grad_qkv.data_ptr(), *place(grad_o),
        )  # fmt: skip

    def _loss(self, e: Ends) -> tuple[Any, ...]:
        return (
            view(e.features), view(e.targets), e.grad_scale, e.step.data_ptr(), e.step_now.data_ptr(),
            e.losses.data_ptr(), view(e.grad_features), e.unit.data_ptr(),
        )  # fmt: skip

    def _update(self, e: Ends) -> tuple[Any, ...]:
        return (
            *e.tokens.shape, len(e.source), e.index.data_ptr(), view(e.grad), e.tokens.data_ptr(),
            e.exp_avg.data_ptr(), e.exp_avg_sq.data_ptr(), e.rates[0].data_ptr(), e.rates[1].data_ptr(),
            e.step_now.data_ptr(), e.step.data_ptr(), e.lr, *BETAS, EPS, e.weight_decay, e.grad_factor,
            e.base.data_ptr(), e.base.shape[1], view(e.inputs),
        )  # fmt: skip

    def cosine_loss(self, e: Ends) -> None:
        self.native.cosine_loss_cuda(*self._loss(e), *place(e.features))

    def adamw(self, e: Ends) -> None:
        self.native.adamw_cuda(*self._update(e), *place(e.tokens))

    def take_phases(
        self,
        phases: Tensor,  # [count · bytes of a record] uint8
        first: int,
        last: int,
        e: Ends,
        blocks: int,
        arrived: Tensor,  # [1] int64
    ) -> None:
        """Phases [first, last) of a plan in one launch."""
        self.native.tower_step_cuda(
            DTYPE_CODES[self.stored], phases.data_ptr(), first, last, self._loss(e), self._update(e), blocks,
            arrived.data_ptr(), *place(phases),
        )  # fmt: skip

"""SeMoBridge's blend: three blocks of cosines from one product, and their logits in its epilogue.

    z1 = norm(f)·tᵀ      z2 = norm(f)·F̂ᵀ      z3 = f·(M F̄ᵀ)/‖f R‖      M = W⁺W, R Rᵀ = M Mᵀ
    logit_c = λ1·exp(−α(1−z1)) + w_c·[λ2·exp(−β(1−z2)) + λ3·exp(−γ(1−z3))]      w_c = exp(s·D_c)

The left operand is the same in all three and in the norm, so the right operands lie side by side
(csrc/blend_logits/blend_logits.h). SeMoBridge, arXiv 2509.26036, §3.3.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from semobridge_ext._ops.blend_logits.reference import blend_logits
from semobridge_ext._ops.project_normalize.prepared import _pack, compute_dtype
from semobridge_ext._ops.project_normalize.reference import scale_rows
from semobridge_ext.runtime.backend import _C, DTYPE_CODES, resolve
from semobridge_ext.runtime.views import place, view

_CUDA_VALUES = 1 << 26  # of one block of products, 256 MiB


class BlendParams(NamedTuple):
    """The blend's parameters: the weights' exponent s, three sharpnesses, three weights."""

    s: float = 0.0
    alpha: float = 1.0
    beta: float = 1.0
    gamma: float = 1.0
    lambda1: float = 1.0
    lambda2: float = 1.0
    lambda3: float = 1.0


class Similarities(NamedTuple):
    """The three blocks of cosines, each [N, C]."""

    text: Tensor  # z1, query against text
    bridged_support: Tensor  # z2, query against bridged prototypes
    bridged_query: Tensor  # z3, bridged query against raw prototypes


class BlendOperand:
    """The right operands of one classifier, kept in float64 and packed once per compute dtype.

    Args:
        text: [C, D] unit rows t. bridged: [C, D] unit rows F̂. raw: [C, D] unit rows F̄.
        exponents: [C] D_c.
        projector: [D, D] M, or None where queries are not bridged (z3 = norm(f)·F̄ᵀ).
        factor: [D, r] with ‖f·factor‖ = ‖f M‖; default M itself.
        All float64 on one device.

    Memory: 3·C·D + D·r packed, columns rounded up to 32; O(block) beside the outputs.
    """

    def __init__(
        self,
        text: Tensor,
        bridged: Tensor,
        raw: Tensor,
        exponents: Tensor,
        projector: Tensor | None = None,
        factor: Tensor | None = None,
    ) -> None:
        self.text, self.bridged, self.raw, self.exponents = text, bridged, raw, exponents
        self.projector = projector
        self.factor = projector if factor is None else factor
        self._packed: dict[torch.dtype, tuple[Tensor, int]] = {}
        self._cuda: dict[torch.device, Tensor] = {}

    @property
    def classes(self) -> int:
        return self.text.shape[0]

    def _right(self, compute: torch.dtype) -> tuple[Tensor, int]:
        """The packed operand [D, 3·Cp + Rp] and its columns before packing."""
        if compute not in self._packed:
            classes, width = self.text.shape
            padded = -(-classes // _C.PANEL) * _C.PANEL
            raw = self.raw if self.projector is None else self.raw @ self.projector.T
            blocks = torch.zeros(3, padded, width, dtype=torch.float64)
            for block, rows in zip(blocks, (self.text, self.bridged, raw), strict=True):
                block[:classes] = rows
            # [3, panels, 32, D] -> panel by panel: text, bridged, raw
            columns = blocks.view(3, -1, _C.PANEL, width).transpose(0, 1).reshape(-1, width).T
            if self.factor is not None:
                columns = torch.cat([columns, self.factor], dim=1)
            self._packed[compute] = _pack(columns, compute), columns.shape[1]
        return self._packed[compute]

    def _run(self, x: Tensor, params: BlendParams, labels=None, logits=None, blocks=None) -> None:
        compute = compute_dtype(x.dtype)
        right, cols = self._right(compute)
        if x.stride(1) != 1:
            x = x.contiguous()
        weights = None
        if params.s != 0:
            weights = torch.ones(-(-self.classes // _C.PANEL) * _C.PANEL, dtype=compute)
            weights[: self.classes] = torch.exp(params.s * self.exponents)
        addresses = [0 if t is None else t.data_ptr() for t in (labels, logits, *(blocks or (None,) * 3))]
        _C.blend_logits(
            x.data_ptr(), DTYPE_CODES[x.dtype], *x.shape, x.stride(0), right.data_ptr(), cols, self.classes,
            self.projector is not None, 0 if weights is None else weights.data_ptr(), *params[1:],
            *addresses, torch.get_num_threads(),
        )  # fmt: skip

    def _run_cuda(self, x: Tensor, params: BlendParams, labels=None, logits=None) -> None:
        """One product by cuBLAS and its epilogue (csrc/blend_logits/cuda.h) per block of rows."""
        rank = 0 if self.factor is None else self.factor.shape[1]
        if x.device not in self._cuda:
            raw = self.raw if self.projector is None else self.raw @ self.projector.T
            parts = [rows.T for rows in (self.text, self.bridged, raw)]
            if self.factor is not None:
                parts.append(self.factor)
            self._cuda[x.device] = torch.cat(parts, dim=1).to(x.device, torch.float32)
        right = self._cuda[x.device]
        x = x.detach() if x.stride(1) == 1 else x.detach().contiguous()
        weights = None
        if params.s != 0:
            weights = torch.exp(params.s * self.exponents).to(x.device, torch.float32)
        step = max(1, _CUDA_VALUES // right.shape[1])
        for i in range(0, x.shape[0], step):
            rows = x[i : i + step]
            with torch.autocast(x.device.type, enabled=False):  # the kernel reads float32
                z = rows.to(torch.float32) @ right
            _C.blend_logits_cuda(
                view(rows), view(z), self.classes, rank, 0 if weights is None else weights.data_ptr(),
                *params[1:], *(0 if t is None else t[i:].data_ptr() for t in (labels, logits)), *place(x),
            )  # fmt: skip

    def _eager_blocks(self, x: Tensor) -> Similarities:
        compute = compute_dtype(x.dtype)
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(compute)
            unit = scale_rows(x)
            text, bridged, raw = (m.to(x.device, compute) for m in (self.text, self.bridged, self.raw))
            query = unit if self.projector is None else scale_rows(x @ self.projector.to(x.device, compute))
            return Similarities(unit @ text.T, unit @ bridged.T, query @ raw.T)

    def similarities(self, x: Tensor) -> Similarities:  # [N, D] -> three [N, C]
        if resolve("similarities", x.device) == "eager":
            return self._eager_blocks(x)
        size, compute = (x.shape[0], self.classes), compute_dtype(x.dtype)
        blocks = Similarities(*(torch.empty(size, dtype=compute) for _ in range(3)))
        self._run(x, BlendParams(), blocks=blocks)
        return blocks

    def _backend(self, verb: str, x: Tensor) -> str:
        cuda = x.dtype is not torch.float64
        return resolve(verb, x.device, cuda=cuda, work=(x.dtype, x.shape[0]))

    def logits(self, x: Tensor, params: BlendParams) -> Tensor:  # [N, D] -> [N, C]
        if self._backend("decision_function", x) == "eager":
            return blend_of(self._eager_blocks(x), params, self.exponents)
        logits = torch.empty(x.shape[0], self.classes, dtype=compute_dtype(x.dtype), device=x.device)
        (self._run_cuda if x.is_cuda else self._run)(x, params, logits=logits)
        return logits

    def labels(self, x: Tensor, params: BlendParams) -> Tensor:  # [N, D] -> [N] int64
        """The argmax of the logits, which are never written; the lower class wins a tie."""
        if self._backend("predict", x) == "eager":
            return self.logits(x, params).argmax(dim=1)
        labels = torch.empty(x.shape[0], dtype=torch.int64, device=x.device)
        (self._run_cuda if x.is_cuda else self._run)(x, params, labels=labels)
        return labels


def blend_of(z: Similarities, params: BlendParams, exponents: Tensor) -> Tensor:  # [N, C]
    """The plain evaluation of the formula on given cosines, in their dtype."""
    weights = torch.exp(params.s * exponents).to(z.text.device, z.text.dtype) if params.s != 0 else None
    return blend_logits(
        *z, weights=weights, alpha=params.alpha, beta=params.beta, gamma=params.gamma, lambdas=params[4:]
    )


def class_exponents(raw: Tensor, text: Tensor) -> Tensor:  # [C, D], [C, D] float64 -> [C]
    """``D_c = log2((1+ε)/(p_cc+ε))``, ε = 1e-6, ``p = softmax(F̄ tᵀ)`` over classes."""
    p = torch.softmax(raw @ text.T, dim=1).diagonal()
    return torch.log2((1 + 1e-6) / (p + 1e-6))

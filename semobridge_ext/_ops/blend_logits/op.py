"""SeMoBridge's blend: three blocks of cosines from one product, and their logits in its epilogue.

    z1 = norm(f)·tᵀ      z2 = norm(f)·F̂ᵀ      z3 = f·(M F̄ᵀ)/‖f R‖      M = W⁺W, R Rᵀ = M Mᵀ
    logit_c = λ1·exp(−α(1−z1)) + w_c·[λ2·exp(−β(1−z2)) + λ3·exp(−γ(1−z3))]      w_c = exp(s·D_c)

The left operand is the same in all three and in the norm, so the right operands lie side by side
(csrc/blend_logits/blend_logits.h). SeMoBridge, arXiv 2509.26036, §3.3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from semobridge_ext._ops.blend_logits import cpu, cuda, eager
from semobridge_ext._ops.blend_logits.spec import BlendParams, Similarities
from semobridge_ext._ops.blend_logits.takes import KERNELS
from semobridge_ext.runtime import half_products, self_check
from semobridge_ext.runtime.choice import choose, resolve
from semobridge_ext.runtime.rows import compute_dtype

_Where = tuple[torch.device, torch.dtype]


class BlendOperand:
    """The right operands of one classifier, kept in float64 and prepared once per dtype and device.

    Args:
        text: [C, D] unit rows t. bridged: [C, D] unit rows F̂. raw: [C, D] unit rows F̄.
        exponents: [C] D_c.
        projector: [D, D] M, or None where queries are not bridged (z3 = norm(f)·F̄ᵀ).
        factor: [D, r] with ‖f·factor‖ = ‖f M‖; default M itself.
        All float64 on one device.

    What a call needs on its device is brought there by the first one: a later call copies nothing from the
    host, which would wait for a GPU, and which no CUDA graph may hold.

    Memory: 3·C·D + D·r packed, columns rounded up to 32, on a GPU once for each dtype of rows; where plain
        PyTorch runs, 3·C·D + D² in each dtype but float64. O(block) beside the outputs.
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
        self._joined: dict[_Where, cuda.Right] = {}
        self._plain: dict[_Where, tuple[Tensor | None, ...]] = {}
        self._weights: dict[_Where, tuple[float, Tensor | None]] = {}

    @property
    def classes(self) -> int:
        return self.text.shape[0]

    def _blocks(self) -> tuple[Tensor, Tensor, Tensor]:
        """What the queries meet: the bridge of the third block is on the side of the classes."""
        raw = self.raw if self.projector is None else self.raw @ self.projector.T
        return self.text, self.bridged, raw

    def _cpu(self, x: Tensor, params: BlendParams, **outputs: Tensor | Similarities) -> None:
        compute = compute_dtype(x.dtype)
        if compute not in self._packed:
            self._packed[compute] = cpu.pack_operand(self._blocks(), self.factor, compute)
        bridged = self.projector is not None
        cpu.blend_logits(x, self._packed[compute], self.exponents, params, bridged=bridged, **outputs)  # type: ignore[arg-type]

    def _cuda(self, x: Tensor, params: BlendParams, **outputs: Tensor) -> None:
        weights = self._class_weights(params.s, x.device, torch.float32)
        cuda.blend_logits(x, self._right(x), self.classes, weights, params, **outputs)

    def _class_weights(self, s: float, device: torch.device, dtype: torch.dtype) -> Tensor | None:
        """``exp(s·D_c)`` [C] of the last s."""
        kept = self._weights.get((device, dtype))
        if kept is None or kept[0] != s:
            kept = s, eager.class_weights(s, self.exponents, device, dtype)
            self._weights[device, dtype] = kept
        return kept[1]

    def _right(self, x: Tensor) -> cuda.Right:
        """All right operands side by side on a GPU, in the type in which rows like these meet them."""
        key = x.device, x.dtype if half_products.served(x) else torch.float32
        if key not in self._joined:
            self._joined[key] = cuda.join_operand(self._blocks(), self.factor, *key)
        return self._joined[key]

    def _eager(self, x: Tensor) -> Similarities:
        if half_products.served(x):
            z = cuda.products(x, self._right(x))
            return eager.similarities_of(z, x, self.classes)
        return eager.similarities(x, *self._plain_operands(x.device, compute_dtype(x.dtype)))  # type: ignore[arg-type]

    def _plain_operands(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor | None, ...]:
        """Text, bridged, raw and projector as plain PyTorch multiplies by them."""
        if (device, dtype) not in self._plain:
            given = self.text, self.bridged, self.raw, self.projector
            self._plain[device, dtype] = tuple(None if t is None else t.to(device, dtype) for t in given)
        return self._plain[device, dtype]

    def similarities(self, x: Tensor, *, called: str = "blend_logits") -> Similarities:
        """Rows [N, D] to the three blocks [N, C]; `called` names the public function in messages."""
        if resolve(called, x.device) == "eager":
            return self._eager(x)
        size, compute = (x.shape[0], self.classes), compute_dtype(x.dtype)
        blocks = Similarities(*(torch.empty(size, dtype=compute, device="cpu") for _ in range(3)))
        self._cpu(x, BlendParams(), blocks=blocks)
        return blocks

    def logits(self, x: Tensor, params: BlendParams, *, called: str = "blend_logits") -> Tensor:
        """Rows [N, D] to logits [N, C]."""
        if choose(KERNELS, x, called=called) == "eager":
            z = self._eager(x)
            weights = self._class_weights(params.s, x.device, z.text.dtype)
            return eager.blend_logits(z, params, weights=weights)
        logits = torch.empty(x.shape[0], self.classes, dtype=compute_dtype(x.dtype), device=x.device)
        (self._cuda if x.is_cuda else self._cpu)(x, params, logits=logits)
        return logits

    def labels(self, x: Tensor, params: BlendParams, *, called: str = "blend_logits") -> Tensor:
        """Rows [N, D] to the argmax [N] of their logits, which are never written; a tie goes to the lower."""
        if choose(KERNELS, x, called=called) == "eager":
            return self.logits(x, params, called=called).argmax(dim=1)
        labels = torch.empty(x.shape[0], dtype=torch.int64, device=x.device)
        (self._cuda if x.is_cuda else self._cpu)(x, params, labels=labels)
        return labels


def _check_kernel(device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """What is compared before `auto` takes a kernel."""

    def wide(rows: int, cols: int, seed: int) -> Tensor:
        return self_check.fixed(rows, cols, device=torch.device("cpu"), dtype=torch.float64, seed=seed) / 8

    exponents = torch.arange(7, dtype=torch.float64, device="cpu") / 8
    operand = BlendOperand(wide(7, 48, 0), wide(7, 48, 1), wide(7, 48, 2), exponents, wide(48, 48, 3))
    x = self_check.fixed(5, 48, device=device, dtype=dtype)
    params = BlendParams()._replace(s=0.5)
    return [operand.logits(x, params)]


self_check.register(KERNELS.op, _check_kernel)

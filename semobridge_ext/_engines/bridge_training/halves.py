"""The wide losses of a SeMoBridge-T step by products of float16 halves, on tensor cores.

Both wide products have float32 operands that one number of float16 does not hold, and two do, to 22 bits:
f = left·(f₁ + f₂), R = right·(R₁ + R₂) and G·left = (G₁ + G₂)/s, with powers of two left [N], right [C] and s
that keep float16's range. R's rows are F̂ and (W⁺B)ᵀ, and products of halves are exact in float32:

    f Rᵀ = left·right·[f₁ | f₂ | f₁] [R₁ | R₁ | R₂]ᵀ      without f₂R₂, which is below 2⁻²² of it
    fᵀ G = s·Σ [f₁ | f₂]ᵀ (G₁, G₂)                       G's halves lie side by side, as pairs

Where the shots were float16, or bfloat16 in its range, f₂ is zero and goes: two products in place of three
and four. The kernel of the loss undoes the first product's powers and cuts its own gradient, in place
(csrc/bridge_training/cuda_halves.cuh); a last one adds the sums of fᵀG up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from semobridge_ext._engines.bridge_training.cuda import CudaTrainingPieces

# N·D times the columns of a product: with fewer the launches that this adds cost more than it saves.
LEAST = 1 << 28
_TOP, _MOST = 14, 126  # as in csrc/bridge_training/cuda_halves.cuh


class WideHalves:
    """Operands and sums of the wide products, for one run.

    Args:
        shots: [N, D] float32, in class order.
        wide: columns of the product, C for each loss.
        pieces: makes the launches.

    Memory: 2 or 3 halves for each value of the shots, 2·wide·D of the other operand, and [2D, 2·wide] sums.
    """

    def __init__(self, shots: Tensor, wide: int, pieces: CudaTrainingPieces) -> None:
        (n, d), self.pieces = shots.shape, pieces
        new = shots.new_empty
        largest = shots.abs().amax(dim=1, keepdim=True) if shots.numel() else shots.new_zeros(n, 1)
        usable = (largest > 0) & torch.isfinite(largest)
        exponent = (_TOP + 1 - torch.frexp(largest)[1]).clamp(max=_MOST)
        power = torch.where(usable, torch.exp2(exponent.to(shots.dtype)), torch.ones_like(largest))
        high = (shots * power).to(torch.float16)
        low = (shots * power - high.to(shots.dtype)).to(torch.float16)
        self.parts = 2 if bool((low != 0).any()) else 1  # NaN is not 0 either
        self.left = power.reciprocal().squeeze(1).contiguous()  # [N]
        self.shots = torch.cat((high, low, high) if self.parts == 2 else (high, high), dim=1)
        self.across = self.shots[:, : self.parts * d]
        self.rows, self.right = new(wide, d), new(wide)  # F̂ and (W⁺B)ᵀ
        self.operand = new(wide, self.shots.shape[1], dtype=torch.float16)
        self.sums = new(self.parts * d, 2 * wide)
        self.bounds, self.lengths = shots.new_zeros(2), new(n)
        self.weighted = new(n)

    def bound_image(self, factor: float, scale: Tensor) -> None:
        """Of the gradient of the image loss, which never changes."""
        self.bounds[:1] = (scale * self.left).amax().mul(factor) if len(scale) else 0.0

    def bound_consistency(self, factor: float, inverse_q: Tensor) -> None:
        """Of the other one: its rows are multiplied by 1/q."""
        torch.mul(inverse_q, self.left, out=self.lengths)
        torch.mul(self.lengths, factor, out=self.weighted)
        torch.amax(self.weighted, dim=0, keepdim=True, out=self.bounds[1:])

    def cut(self) -> None:
        """The halves of `rows`."""
        self.pieces.cut_rows(self.rows, self.parts, self.operand, self.right)

    def multiply(self, begin: int, end: int, logits: Tensor) -> None:
        """The product of shots [begin, end) with all rows, not yet times left and right."""
        self.pieces.half_product(self.shots[begin:end], self.operand.T, logits)

    def add(self, begin: int, end: int, logits: Tensor, split: int, out: Tensor, first: bool) -> None:
        """out [D, wide] = or += fᵀ G of these shots; ``logits`` holds G in pairs."""
        self.pieces.half_product(self.across[begin:end].T, logits.view(torch.float16), self.sums)
        self.pieces.add_halves(self.sums, self.parts, self.bounds, split, out, not first)

"""FrozenTower: learned vectors in a frozen transformer tower, forward and input gradient.

    feature(v)              the tower's feature with the vectors v in their positions
    gradient(v, g)          gᵀ·∂feature/∂v, no weight gradients
    descend(v)              AdamW steps on 1 − cos(feature(v), target)

The steps run inside the core (csrc/tower_descent/tower_descent.h): one call, no autograd, no allocation
and no synchronisation between steps. Constants are computed once: the keys and values of the positions
before the first learned one, and the first layer's constant rows. Positions after the pooled one of a causal
tower, and the last layer's other rows, are not computed at all.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from semobridge_ext._engines.tower_descent.engine import TowerEngine
from semobridge_ext._engines.tower_descent.rows import slot_rows
from semobridge_ext._engines.tower_descent.spec import ACTIVATIONS, LearnedRows, Linear, Norm, Tower
from semobridge_ext.runtime.adamw import BETAS, EPS
from semobridge_ext.runtime.backend import _C, DTYPE_CODES
from semobridge_ext.runtime.threads import thread_count
from semobridge_ext.runtime.views import address, values, view


def lossless_half(tower: Tower) -> bool:
    """True where every matrix is exactly a float16 one, as in models that were trained or kept so."""
    for linear in tower.linears():
        w = linear.weight
        if not torch.equal(w, w.to(torch.float16).to(w.dtype)):
            return False
    return True


class PackedTower:
    """A tower's weights in the layout of the tile product, forward and transposed.

    Args:
        tower: on the CPU.
        weights: dtype of the packed matrices. None: float64 in a float64 tower; float16 where that
            loses nothing (half the bytes to read, the same numbers); else float32. bfloat16 and
            float16 round, which changes results by their precision.
        bf16_products: rows are rounded to bfloat16 before each product, whose sums stay float32; the
            weights are kept in bfloat16. Needs AVX-512-BF16 and a float32 tower.

    Raises:
        ValueError: from the first step that runs, where a matrix does not fit its layer, or where this
            processor or instruction set has no such products.

    Memory: two copies of every matrix in ``weights``.

    Example:
        >>> import open_clip
        >>> from semobridge_ext import clip, ops
        >>> vision = {"image_size": 32, "patch_size": 16, "width": 32, "layers": 1, "head_width": 16}
        >>> text = {"context_length": 12, "width": 32, "heads": 2, "layers": 2}
        >>> tower, _ = clip.text_tower(open_clip.CLIP(16, vision, text), "a photo of {}")
        >>> ops.PackedTower(tower).stored
        torch.float32
    """

    def __init__(
        self, tower: Tower, weights: torch.dtype | None = None, *, bf16_products: bool = False
    ) -> None:
        self.tower = tower
        self.compute = tower.compute
        self.bf16_products = bf16_products
        if bf16_products:
            weights = torch.bfloat16
        if weights is None:
            weights = torch.float16 if lossless_half(tower) else torch.float32
        self.stored = torch.float64 if self.compute == torch.float64 else weights
        total = sum(2 * self._elements(linear) for linear in tower.linears())
        self._arena = torch.empty(total + 64, dtype=self.stored, device="cpu")
        _C.prefer_huge_pages(address(self._arena), self._arena.nbytes)
        lead = -address(self._arena) % 64 // self._arena.element_size()
        self._next = address(self._arena) + lead * self._arena.element_size()
        self._keep: list[Tensor] = []
        self.projection = self._linear(tower.projection)
        self.norms = [self._norm(n) for n in (tower.norm_pre, tower.norm_final)]
        self.layers = [
            (
                self._norm(b.norm1), self._norm(b.norm2), self._linear(b.qkv), self._linear(b.out),
                self._linear(b.fc), self._linear(b.proj), 0 if b.query is None else self._vector(b.query),
            )
            for b in tower.blocks
        ]  # fmt: skip

    @staticmethod
    def _elements(linear: Linear) -> int:
        rows, cols = linear.weight.shape
        return max(_C.packed_elements(rows, cols), _C.packed_elements(cols, rows))

    def _pack(self, matrix: Tensor) -> int:
        matrix = matrix.contiguous()
        rows, cols = matrix.shape
        begin = self._next
        _C.pack_matrix(view(matrix), DTYPE_CODES[self.stored], begin)
        self._next += _C.packed_elements(rows, cols) * self._arena.element_size()
        return begin

    def _vector(self, value: Tensor) -> int:
        kept = values(value.to(self.compute))
        self._keep.append(kept)
        return address(kept)

    def _linear(self, linear: Linear | None) -> tuple[int, int, int, int, int]:
        if linear is None:
            return 0, 0, 0, 0, 0
        bias = 0 if linear.bias is None else self._vector(linear.bias)
        return self._pack(linear.weight), self._pack(linear.weight.T), bias, *linear.weight.shape

    def _norm(self, norm: Norm | None) -> tuple[int, int, float]:
        if norm is None:
            return 0, 0, 0.0
        return self._vector(norm.weight), self._vector(norm.bias), norm.eps


class FrozenTower(TowerEngine):
    """Learned rows in a packed tower, ready to run on CPU tensors of ``packed.compute``.

    Args:
        packed: the weights; several templates may share them.
        rows: what is learned and what stands around it.

    Raises:
        ValueError: no position is learned, or a causal tower's pooled position sees none.

    Numerics: sums in ``compute`` in a fixed order, so that a sample's bits depend neither on the other
        samples nor on the number of threads.

    Memory: scratch for at most 112 rows of a step a thread, grown on the first call and kept.

    Example:
        >>> import torch, open_clip
        >>> from semobridge_ext import clip, ops
        >>> vision = {"image_size": 32, "patch_size": 16, "width": 32, "layers": 1, "head_width": 16}
        >>> text = {"context_length": 12, "width": 32, "heads": 2, "layers": 2}
        >>> model = open_clip.CLIP(16, vision, text)
        >>> tower, rows = clip.text_tower(model, "a photo of {}", num_tokens=2)
        >>> engine = ops.FrozenTower(ops.PackedTower(tower), rows)
        >>> engine.features(torch.zeros(3, 2, 32)).shape
        torch.Size([3, 16])
    """

    kind = "native"

    def __init__(self, packed: PackedTower, rows: LearnedRows) -> None:
        tower = packed.tower
        self.packed, self.compute = packed, packed.compute
        self.vectors, self.width, self.dim = rows.vectors, tower.width, tower.features
        self._rows = slot_rows(tower, rows, self.compute, self.compute)  # the core reads it by address
        base, prefixes = self._rows.base, self._rows.prefixes
        self.slots, self.prefix = len(self._rows.source), self._rows.prefix
        self.constants = base.shape[1]  # 1, or the number of samples
        self._native: Any = _C.FrozenTower(
            DTYPE_CODES[self.compute], DTYPE_CODES[packed.stored], tower.width, tower.heads,
            tower.features, rows.vectors, ACTIVATIONS.index(tower.activation), *packed.norms,
            packed.projection, packed.bf16_products,
        )  # fmt: skip
        for i, layer in enumerate(packed.layers):
            self._native.add_layer(*layer[:6], address(prefixes[i] if prefixes else None), layer[6])
        self._native.set_slots(
            list(self._rows.source), [list(v) for v in self._rows.visible], self.prefix,
            address(base), self.constants * tower.width,
            0 if self.constants == 1 else tower.width,
        )  # fmt: skip
        self._workspace = torch.empty(0, dtype=self.compute, device="cpu")

    def workspace_bytes(self, samples: int) -> int:
        """Scratch for this many samples with the present number of threads."""
        return self._native.workspace(samples, thread_count())

    def _scratch(self, samples: int) -> int:
        elements = self.workspace_bytes(samples) // self._workspace.element_size() + 16
        if self._workspace.numel() < elements:
            self._workspace = torch.empty(elements, dtype=self.compute, device="cpu")
        return (address(self._workspace) + 63) // 64 * 64

    def features(
        self,
        tokens: Tensor,  # [S, R, T]
        *,
        unit: bool = False,
    ) -> Tensor:  # [S, D]
        out = torch.empty(tokens.shape[0], self.dim, dtype=self.compute, device="cpu")
        self._evaluate(tokens, out, unit, None, None)
        return out

    def gradient(
        self,
        tokens: Tensor,  # [S, R, T]
        grad_features: Tensor,  # [S, D] with respect to features(unit=False)
    ) -> Tensor:  # [S, R, T]
        out = torch.empty_like(tokens, memory_format=torch.contiguous_format)
        self._evaluate(tokens, None, False, grad_features.contiguous(), out)
        return out

    def _evaluate(
        self,
        tokens: Tensor,
        features: Tensor | None,
        unit: bool,
        grad_features: Tensor | None,
        grad_tokens: Tensor | None,
    ) -> None:
        tokens = tokens.detach().contiguous()
        n = tokens.shape[0]
        self._native.evaluate(
            n, address(tokens), address(features), unit, address(grad_features), address(grad_tokens),
            self._scratch(n), thread_count(),
        )  # fmt: skip

    def descend(
        self,
        tokens: Tensor,  # [S, R, T], updated
        exp_avg: Tensor,  # [S, R, T], updated
        exp_avg_sq: Tensor,  # [S, R, T], updated
        targets: Tensor,  # [S, D] unit rows
        step_begin: int,
        step_end: int,
        *,
        grad_scale: float,
        lr: float,
        weight_decay: float,
        record_steps: tuple[int, ...] = (),
        recorded: Tensor | None = None,  # [len(record_steps), S, D], written
    ) -> Tensor:  # [steps, S]
        n = tokens.shape[0]
        losses = torch.empty(max(step_end - step_begin, 0), n, dtype=self.compute, device="cpu")
        self._native.descend(
            n, address(tokens), address(exp_avg), address(exp_avg_sq), address(targets),
            address(losses), step_begin, step_end, grad_scale, lr, *BETAS, EPS, weight_decay,
            list(record_steps) if recorded is not None else [], address(recorded), self._scratch(n),
            thread_count(),
        )  # fmt: skip
        return losses

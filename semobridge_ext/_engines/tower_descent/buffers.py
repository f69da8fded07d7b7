"""The tensors of an inversion step for some number of samples; they stay where they are.

Rows are slot-major ([n, S, T]), slot 0 the pooled one; the prefix is a constant per layer. The first layer
works on the learned slots alone, whose rows are the only ones that change; the last layer continues with
slot 0 alone.

Letters as in torch.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from semobridge_ext._engines.tower_descent.forward import normed
from semobridge_ext._engines.tower_descent.rows import SlotRows
from semobridge_ext._engines.tower_descent.tensors import Ends, Heads
from semobridge_ext._engines.tower_descent.torch import TorchTowerPieces
from semobridge_ext._engines.tower_descent.weights import LaunchedLayer, LaunchedWeights
from semobridge_ext.runtime.scratch import Scratch

TABLE = 64  # steps whose rates and losses are held at once


@dataclass
class Pass:
    """A layer's tensors between forward and backward."""

    layer: LaunchedLayer
    rows: slice  # that the layer norms and projects
    out_rows: int  # that it goes on with
    x: Tensor  # [n·S, T]
    qkv: Tensor  # [n·S, 3T]
    middle: Tensor  # [out_rows, T]
    h: Tensor  # [out_rows, M]
    residual: Tensor | None  # [n·S, T] gradient of `middle`, zero past out_rows; None with a pooling query
    norm1: Any
    norm2: Any
    attention: Any

    @property
    def projected(self) -> slice:
        """Columns of qkv that change."""
        return slice(None if self.layer.query is None else self.x.shape[1], None)


class Buffers:
    """What step.py's sequence reads and writes.

    Args:
        weights, rows: on the device.
        samples: S; fewer may use it, the rest of the rows is then filler.
        pieces: class of the pieces.
    """

    def __init__(
        self, weights: LaunchedWeights, rows: SlotRows, samples: int, pieces: type[TorchTowerPieces]
    ) -> None:
        self.weights, self.rows, self.samples = weights, rows, samples
        self.device, self.stored, self.compute = rows.base.device, weights.stored, weights.compute
        self.scratch = Scratch(self.device)
        self.pieces = pieces(self.compute, self.stored, self.scratch, weights.tower.activation)
        learned, self.width = rows.learned, weights.tower.width
        self.all_rows = len(rows.source) * samples
        self.learned = slice(learned.start * samples, learned.stop * samples)
        self.x0 = self._new(self.all_rows, self.width)
        self.pre = None
        if weights.norm_pre is not None:
            self.pre = self.pieces.norm_state(len(learned) * samples, self.width)
        self.raw = (
            self.x0[self.learned] if self.pre is None else self._new(len(learned) * samples, self.width)
        )
        self.passes = [self._pass(i) for i in range(len(weights.layers))]
        self._constants()
        self.dx = self._new(self.all_rows, self.width)
        self.grad_raw = self.dx[self.learned] if self.pre is None else self._new(*self.raw.shape)
        self.last = self._new(samples, self.width)  # slot 0 behind the last layer
        self.normed = self.last if weights.norm_final is None else self._new(samples, self.width)
        self.final = self.pieces.norm_state(samples, self.width)
        self.ends = self._ends(learned)

    def _new(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=self.stored, device=self.device)

    def _pass(self, index: int) -> Pass:
        layer, last = self.weights.layers[index], index == len(self.weights.layers) - 1
        slots = len(self.rows.source)
        rows = self.learned if index == 0 else slice(0, self.all_rows)
        out_rows = self.samples if last else self.all_rows
        qkv = self._new(self.all_rows, 3 * self.width)
        if layer.query is not None:
            qkv[: self.samples, : self.width] = layer.query
        heads = Heads(
            self.samples, self.weights.tower.heads, self.rows.prefixes[index] if self.rows.prefixes else None,
            self.rows.visible[: 1 if last else slots], layer.query is not None, qkv,
        )  # fmt: skip
        residual = None
        if layer.query is None:
            # Zeros behind slot 0 in the last layer, whose other rows end there.
            residual = (
                self._new(self.all_rows, self.width) if last else self._take("dm", self.all_rows, self.width)
            )
        count = len(range(*rows.indices(self.all_rows)))
        return Pass(
            layer, rows, out_rows, self.x0 if index == 0 else self._new(self.all_rows, self.width), qkv,
            self._new(out_rows, self.width), self._new(out_rows, layer.fc.weight.shape[1]),
            residual,
            self.pieces.norm_state(count, self.width), self.pieces.norm_state(out_rows, self.width),
            self.pieces.attention_state(heads),
        )  # fmt: skip

    def _constants(self) -> None:
        """The first layer's rows without a learned vector: their input, keys, values and queries."""
        first = self.passes[0]
        x = normed(self.rows.base, self.weights.norm_pre).to(self.stored)  # [n, 1 or S, T]
        linear = first.layer.qkv
        qkv = normed(x.to(self.compute), first.layer.norm1) @ linear.weight.to(self.compute)
        if linear.bias is not None:
            qkv = qkv + linear.bias
        slots = len(self.rows.source)
        self.x0.view(slots, self.samples, -1).copy_(x)
        first.qkv.view(slots, self.samples, -1)[..., first.projected].copy_(qkv)

    def _ends(self, learned: range) -> Ends:
        s, d, vectors = self.samples, self.weights.tower.features, self.rows.vectors
        source = self.rows.source[learned.start : learned.stop]
        spread = torch.tensor([[float(own == r) for own in source] for r in range(vectors)])

        def new(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=self.compute, device=self.device)

        return Ends(
            features=self.normed if self.weights.projection is None else self._new(s, d),
            targets=new(s, d), live=new(s, 1), grad_features=self._new(s, d), losses=new(TABLE, s),
            unit=new(s, d), step=torch.zeros(1, dtype=torch.int64, device=self.device),
            step_now=torch.zeros(1, dtype=torch.int64, device=self.device), rates=new(2, TABLE),
            tokens=new(s, vectors, self.width), exp_avg=new(s, vectors, self.width),
            exp_avg_sq=new(s, vectors, self.width), grad=self.grad_raw, inputs=self.raw,
            base=self.rows.base[learned.start : learned.stop], source=source,
            index=torch.tensor(source, dtype=torch.int32).to(self.device),
            spread=spread.to(self.device, self.compute),
        )  # fmt: skip

    @property
    def state(self) -> list[Tensor]:
        """What a step changes and the next one reads."""
        e = self.ends
        return [e.tokens, e.exp_avg, e.exp_avg_sq, e.inputs, e.step, e.step_now]

    def _take(self, name: str, rows: int, width: int) -> Tensor:
        return self.scratch.take(name, (rows, width), self.stored)

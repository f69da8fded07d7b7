"""What a SeMoBridge-T step reads and writes: constants of the run, parameters, workspaces.

Rows lie in class order. All tensors of one dtype (float32 or float64) and device; they are made once and
stay where they are, so that a CUDA graph can repeat the step over them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from semobridge_ext._engines.bridge_training.spec import Batch, Chunk, LossWeights
from semobridge_ext._engines.bridge_training.torch import TorchTrainingPieces
from semobridge_ext.runtime.views import values

_ALIGN = 64  # values: where a parameter begins in the one array of all


class Workspace:
    """The tensors of step.py's products, under the names of its formulas.

    Args:
        inverse, text_projection, shots, labels, text, hidden, class_bias, logit_scale, weights: as for
            BridgeTrainer.
        pieces: makes what runs between the products.
        streamed: Triton makes the wide losses; no logits are stored.
    """

    def __init__(
        self,
        inverse: Tensor,  # [D, T]
        text_projection: Tensor,  # [T, D]
        shots: Tensor,  # [N, D]
        labels: Tensor,  # [N]
        text: Tensor,  # [C, D]
        hidden: Tensor | None,  # [C, T]
        *,
        class_bias: bool,
        logit_scale: float,
        weights: LossWeights,
        pieces: Callable[[Batch], TorchTrainingPieces],
        streamed: bool,
    ) -> None:
        self.weights = weights
        self.w, self.shots, self.text = (values(m) for m in (text_projection, shots, text))
        self.hidden = None if hidden is None else values(hidden)
        self.gram = self.w @ self.w.T  # WWᵀ
        self.classes = text.shape[0]
        counts = torch.bincount(labels, minlength=self.classes)
        self.labels = labels
        offsets = torch.zeros(self.classes + 1, dtype=torch.int64)
        torch.cumsum(counts.cpu(), 0, out=offsets[1:])
        self.bounds = offsets.tolist()
        norms = torch.linalg.vector_norm(shots, dim=1)
        self.image_scale = torch.where(norms == 0, torch.zeros_like(norms), logit_scale / norms)
        self.image_on = self.weights.image != 0
        self.consistency_on = self.weights.consistency != 0
        batch = Batch(
            labels.contiguous(), offsets.to(shots.device), self.bounds, counts.to(shots.dtype).unsqueeze(1),
            self.w.shape[0],
        )  # fmt: skip
        self.pieces = pieces(batch)
        self._streamed: Callable[..., None] | None = None
        if streamed:
            from semobridge_ext._engines.bridge_training.triton import StreamedLoss

            self._streamed = StreamedLoss(self.shots, batch.labels, batch.offsets)
        self._make_parameters(inverse, class_bias)
        self._chunks = self._cut()
        self._make_workspaces()

    def _make_parameters(self, inverse: Tensor, class_bias: bool) -> None:
        """Parameters, gradients and moments: each one array, which AdamW takes whole, and views of it."""
        shapes = {"inverse": inverse.shape}
        if class_bias:
            shapes["tau"] = torch.Size((self.classes, inverse.shape[1]))
        begin, end = {}, 0
        for name, shape in shapes.items():
            begin[name] = end
            end += -(-shape.numel() // _ALIGN) * _ALIGN

        def views(flat: Tensor) -> dict[str, Tensor]:
            return {n: flat[begin[n] : begin[n] + s.numel()].view(s) for n, s in shapes.items()}

        new = self.shots.new_zeros
        self._flat = new(end), new(end), new(end), new(end)
        self.parameters, self.gradients, first, second = map(views, self._flat)
        self.state = {name: (first[name], second[name]) for name in shapes}
        self.parameters["inverse"].copy_(inverse)

    def _make_workspaces(self) -> None:
        new, c, (n, d), t = self.shots.new_empty, self.classes, self.shots.shape, self.w.shape[0]
        self.e, self.h, self.r = new(n, t), new(n, t), new(n)
        self.q, self.inverse_q, self.dot = new(n), new(n), new(n)
        self.mean, self.grad_mean = new(c, t), new(c, t)
        self.hat, self.hat_norms, self.grad_hat = new(c, d), new(c, 1), new(c, d)
        wide = c * (self.image_on + self.consistency_on)
        self._halves = None if self._streamed or not wide else self.pieces.wide_halves(self.shots, wide)
        if self._halves is not None and self.image_on:
            self.hat = self._halves.rows[:c]
            self._halves.bound_image(self.weights.image / n, self.image_scale)
        longest = max(self.bounds[b] - self.bounds[a] for a, b in self._chunks)
        self.logits = new(0 if self._streamed else longest, wide)
        self.pieces.longest = longest
        self.z = new(d, wide)
        self.square = new(c, c)  # what a class adds to its shots' logits, later logits of the text losses
        self.operand = self.hat.T
        if self.consistency_on:
            self.back, self.grad_back, self.carried = new(t, c), new(t, c), new(d, c)
            if self._halves is not None:
                self.carried = self._halves.rows[-c:].T
            elif self.image_on:
                self.operand = new(d, wide)
            else:
                self.operand = self.carried
        self.sums = self.extra = None
        if self.consistency_on and "tau" in self.parameters:
            self.sums, self.extra = new(c, c), new(c, t)
        if self.hidden is not None and self.weights.text_embedded != 0:
            self.unit_mean, self.mean_norms, self.grad_unit = new(c, t), new(c, 1), new(c, t)
        self._make_parts()

    def _make_parts(self) -> None:
        """The losses' parts: one array, and each loss's share of it."""
        c = self.classes if self.pieces.loss_per_row else 1
        size = {"image": len(self.shots), "consistency": len(self.shots)}
        size |= {"text_projected": c, "text_embedded": c, "bias": c}
        missing = {"bias": "tau" not in self.parameters, "text_embedded": self.hidden is None}
        on = [n for n in size if getattr(self.weights, n) != 0 and not missing.get(n)]
        self._all_parts = self.shots.new_zeros(sum(size[n] for n in on))
        self._parts = dict(zip(on, self._all_parts.split([size[n] for n in on]), strict=True))
        self._loss = self.shots.new_zeros(1)
        self._count = torch.zeros(1, dtype=torch.int64, device=self.shots.device)  # of the steps taken
        self._now = torch.zeros_like(self._count)  # the step under way

    def _cut(self) -> list[Chunk]:
        """Ranges of classes whose logits are about a chunk."""
        width = max(1, self.classes * (self.image_on + self.consistency_on))
        rows = max(64, self.pieces.chunk_values // width)
        chunks, first = [], 0
        for c in range(1, self.classes + 1):
            if c == self.classes or self.bounds[c + 1] - self.bounds[first] > rows:
                chunks.append((first, c))
                first = c
        return chunks

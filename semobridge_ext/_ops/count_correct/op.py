"""count_correct: how many rows each set of blend parameters classifies correctly.

A row is compared only with the classes that can beat its label under some parameters: a class that another
one dominates (no cosine and no weight exponent higher) never comes first. The comparison of a row stops at
the first logit above its label's (csrc/count_correct/count_correct.h).

Exactness: the count is that of a float64 evaluation of the formula on the same cosines, ties going to
the lower class. Float32 decides only where the difference is beyond its rounding error.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from semobridge_ext import _errors
from semobridge_ext._ops.blend_logits.op import BlendOperand
from semobridge_ext._ops.blend_logits.spec import BlendParams
from semobridge_ext._ops.count_correct import cpu, eager
from semobridge_ext.runtime.choice import resolve

# Dominance needs sharpnesses above the first, s and λ ≥ 0 and a positive λ. Past the second, float64 flushes
# exponentials to zero and logits tie. The formula itself counts the rest.
_SHARPNESS, _REACH = 1e-3, 600.0
_CELLS = 1 << 22  # values of one block of cosines at a time


class CorrectCounter:
    """Counts the correct rows of one validation set under many sets of parameters.

    Args:
        operand: the classifier's operands. x: [N, D] validation features. labels: [N] int64.

    Memory: about 40 bytes per candidate (usually a few tens a row), one chunk of N×C cosines while it
    is built; the plain evaluation of degenerate parameters makes the cosines again, chunk by chunk.
    """

    def __init__(
        self, operand: BlendOperand, x: Tensor, labels: Tensor, *, called: str = "count_correct"
    ) -> None:
        # A copy, checked here: the core reads a label as an index, and the given ones may change meanwhile.
        self._operand, self._x = operand, x
        self._labels = labels.to("cpu", copy=True).resolve_neg()
        if bool(((self._labels < 0) | (self._labels >= operand.classes)).any()):
            contract = f"lie in 0..{operand.classes - 1}"
            got = f"{int(self._labels.min())}..{int(self._labels.max())}"
            raise ValueError(_errors.message(called, "labels", contract, got, "renumber the labels from 0"))
        self.rows = len(x)
        self.candidates = 0
        self._native = resolve(called, x.device) == "native"
        if self._native:
            self._build()

    def _chunks(self) -> list[tuple[Tensor, Tensor]]:
        step = max(1, _CELLS // self._operand.classes)
        return list(zip(self._x.split(step), self._labels.split(step), strict=True))

    def _build(self) -> None:
        pad = cpu.candidate_pad()
        d = self._operand.exponents.contiguous()
        counts, indices, cosines, own = [], [], [], []
        for x, labels in self._chunks():
            z = self._operand.similarities(x)
            labels = labels.contiguous()
            found, count = cpu.prune_candidates(z, labels, d)
            padded = (count + pad - 1) // pad * pad
            width = max(int(padded.max()), pad) if len(count) else pad
            if found.shape[1] < width:
                found = torch.nn.functional.pad(found, (0, width - found.shape[1]))
            place = torch.arange(width, device="cpu")
            # Padding repeats a row's first candidate, which changes no comparison.
            chosen = torch.where(place < count.unsqueeze(1), found[:, :width], found[:, :1]).long()
            keep = place < padded.unsqueeze(1)
            chosen = torch.where(keep, chosen, 0)
            counts.append(padded)
            indices.append(chosen[keep].int())
            cosines.append([b.gather(1, chosen)[keep] for b in z])
            own.append([b.gather(1, labels.unsqueeze(1)).squeeze(1) for b in z])
            self.candidates += int(count.sum())
        sizes = torch.cat(counts)
        self._offsets = torch.zeros(len(sizes) + 1, dtype=torch.int64, device="cpu")
        torch.cumsum(sizes, 0, out=self._offsets[1:])
        self._indices = torch.cat(indices)
        self._z = [torch.cat(parts) for parts in zip(*cosines, strict=True)]
        self._own = [torch.cat(parts) for parts in zip(*own, strict=True)]
        self._d, self._largest_d = d, float(d.abs().max())
        self._candidate_d = d[self._indices.long()].to(self._z[0].dtype)
        self._own_d = d[self._labels].to(self._z[0].dtype)

    def correct(self, params: Sequence[BlendParams]) -> list[int]:
        """Rows that each set of parameters gets right."""
        result = [0] * len(params)
        fast = [i for i, p in enumerate(params) if self._native and self._ordered(p)]
        if fast:
            counts = cpu.count_correct(
                self._labels, self._own, self._own_d, self._offsets, self._indices, self._z,
                self._candidate_d, self._d, self._largest_d, [params[i] for i in fast],
            )  # fmt: skip
            for i, count in zip(fast, counts, strict=True):
                result[i] = count
        for i in set(range(len(params))) - set(fast):
            result[i] = self.correct_plain(params[i])
        return result

    def correct_plain(self, params: BlendParams) -> int:
        """The same count by the formula itself, in float64 on the same cosines."""
        total = 0
        for x, labels in self._chunks():
            z = self._operand.similarities(x)
            total += eager.count_correct(z, labels, params, self._operand.exponents)
        return total

    def _ordered(self, p: BlendParams) -> bool:
        """Whether a higher cosine and exponent never lower a logit, and raise it where that counts."""
        sharp = p.alpha, p.beta, p.gamma
        weights = p.lambda1, p.lambda2, p.lambda3
        reach = 2 * max(sharp) + p.s * self._largest_d
        inside = p.s >= 0 and min(sharp) >= _SHARPNESS and reach <= _REACH
        return inside and min(weights) >= 0 and 1e-6 <= max(weights) < 1e30

"""count_correct on the CPU: the candidates of every row, and the count of many parameter sets."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from semobridge_ext._ops.blend_logits.spec import BlendParams, Similarities
from semobridge_ext.runtime.backend import _C, DTYPE_CODES
from semobridge_ext.runtime.threads import thread_count
from semobridge_ext.runtime.views import address, view

# Cosines that differ by less may tie where a sharpness is small, and then the order of the classes
# decides, so dominance across that order needs this much.
MARGIN = 1e-6


def candidate_pad() -> int:
    """Candidates of a row come in multiples of this."""
    return _C.CANDIDATE_PAD


def prune_candidates(
    z: Similarities,  # each [N, C]
    labels: Tensor,  # [N] int64, contiguous
    exponents: Tensor,  # [C] float64, contiguous
) -> tuple[Tensor, Tensor]:  # [N, C] int32, [N] int64: the first so many of a row may beat its label
    found = torch.empty(z.text.shape, dtype=torch.int32, device="cpu")
    count = torch.empty(len(labels), dtype=torch.int32, device="cpu")
    _C.prune_candidates(
        *map(view, z), address(labels), address(exponents), MARGIN, address(found), address(count),
        thread_count(),
    )  # fmt: skip
    return found, count.long()


def count_correct(
    labels: Tensor,  # [N] int64
    own: Sequence[Tensor],  # three [N], the label's cosines
    own_exponents: Tensor,  # [N]
    offsets: Tensor,  # [N + 1] int64
    indices: Tensor,  # [M] int32, the candidates
    cosines: Sequence[Tensor],  # three [M]
    candidate_exponents: Tensor,  # [M]
    exponents: Tensor,  # [C] float64
    largest_exponent: float,
    params: Sequence[BlendParams],
) -> list[int]:
    """Rows that each set of parameters gets right."""
    table = torch.tensor(params, dtype=torch.float64, device="cpu")
    won = torch.empty(len(params), dtype=torch.int64, device="cpu")
    _C.count_correct(
        DTYPE_CODES[cosines[0].dtype], len(labels), address(labels), *(address(o) for o in own),
        address(own_exponents), address(offsets), address(indices),
        *(address(b) for b in cosines), address(candidate_exponents), address(exponents),
        largest_exponent, len(params), address(table), address(won), thread_count(),
    )  # fmt: skip
    return won.tolist()

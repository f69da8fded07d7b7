"""blend_logits: a classifier's logits from features, in float32, D = 512.

Members: `eager` is the formula in PyTorch, three products with what lies between them; `native` one product
with the blend in its epilogue; `mm` the bare product with the three blocks of classes and the bridge's
factor, ready and side by side, into a ready output.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import pytest
import torch
from torch import Tensor

import semobridge_ext as sb
from semobridge_ext._ops.blend_logits.op import BlendOperand
from semobridge_ext._ops.blend_logits.spec import BlendParams
from semobridge_ext.reference import blend_logits, scale_rows

WIDTH, RANK = 512, 256
SIZES = ((1, 100), (256, 100), (4096, 1000))  # queries, classes
PARAMS = BlendParams(0.7, 3.0, 5.0, 2.0, 0.9, 0.6, 0.8)
MEMBERS = ("eager", "native", "mm")


@lru_cache(maxsize=1)
def problem(rows: int, classes: int) -> tuple[BlendOperand, Tensor, Tensor]:
    """The operand, the queries, and the logits in float64."""
    g = torch.Generator().manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=g, dtype=torch.float64)

    means = draw(classes, WIDTH)
    text, bridged, raw = (scale_rows(means + 2.0 * draw(classes, WIDTH)) for _ in range(3))
    basis = torch.linalg.qr(draw(WIDTH, RANK))[0]
    exponents = torch.rand(classes, generator=g, dtype=torch.float64)
    operand = BlendOperand(text, bridged, raw, exponents, basis @ basis.T, basis)
    x = (means[torch.arange(rows) % classes] + 3.0 * draw(rows, WIDTH)).float()
    f = x.double()
    z = scale_rows(f) @ text.T, scale_rows(f) @ bridged.T, scale_rows(f @ basis @ basis.T) @ raw.T
    want = blend_logits(
        *z, weights=torch.exp(PARAMS.s * exponents), alpha=PARAMS.alpha, beta=PARAMS.beta,
        gamma=PARAMS.gamma, lambdas=(PARAMS.lambda1, PARAMS.lambda2, PARAMS.lambda3),
    )  # fmt: skip
    return operand, x, want


def program(member: str, size: tuple[int, int]) -> tuple[Callable[[], Tensor], Tensor]:
    operand, x, want = problem(*size)
    if member == "mm":
        right = torch.cat([operand.text, operand.bridged, operand.raw]).T.float().contiguous()
        right = torch.cat([right, operand.factor.float()], 1)
        out = torch.empty(len(x), right.shape[1])
        return lambda: torch.mm(x, right, out=out), x.double() @ right.double()
    if member == "native":
        return lambda: operand.logits(x, PARAMS), want

    def eager() -> Tensor:
        with sb.backend("eager"):
            return operand.logits(x, PARAMS)

    return eager, want


@pytest.mark.parametrize("member", MEMBERS)
@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
def test_logits(timed, size: tuple[int, int], member: str) -> None:
    rows, classes = size
    columns = 3 * classes + RANK
    run, oracle = program(member, size)
    timed(
        run, group=f"blend_logits/{rows}x{classes}/float32", member=member, oracle=oracle, bound=1e-5,
        flops=2.0 * rows * WIDTH * columns, bytes_moved=4.0 * (rows * (WIDTH + classes) + WIDTH * columns),
    )  # fmt: skip

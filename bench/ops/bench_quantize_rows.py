"""quantize_rows beside the same codes by PyTorch (`eager`) and a copy of the rows (`copy`); D = 512."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from streams import BOUND, CHECKED, WIDTH, rows_of_classes
from torch import Tensor

from semobridge_ext._ops.quantize_rows.op import quantize_rows
from semobridge_ext._ops.quantize_rows.reference import quantize_rows as oracle
from semobridge_ext._ops.quantize_rows.reference import unpack

ROWS, CLASSES = 200_000, 1000


def program(member: str) -> tuple[Callable[[], Tensor], Tensor]:
    rows = rows_of_classes(ROWS, CLASSES, 0)[0]
    if member == "copy":
        out = torch.empty_like(rows)
        return lambda: out.copy_(rows)[:CHECKED], rows[:CHECKED].double()
    codes, scale, _ = oracle(rows[:CHECKED])
    want = codes * scale[:, None]

    def native() -> Tensor:
        found = quantize_rows(rows)
        first = found.bounds[: CHECKED // 32, 0].reshape(-1, 1)
        return unpack(found.codes[: CHECKED // 32], CHECKED, WIDTH) * first

    def eager() -> Tensor:
        scales = rows.abs().amax(1, keepdim=True) / 127
        whole = (rows / scales).round().to(torch.int8)
        left = torch.linalg.vector_norm(rows - whole * scales, dim=1)
        assert len(left) == ROWS
        return whole[:CHECKED] * scales[:CHECKED]

    return (native if member == "native" else eager), want


@pytest.mark.parametrize("member", ["eager", "native", "copy"])
def test_quantize_rows(timed, member: str) -> None:
    function, want = program(member)
    # An entry in the middle between two codes may go either way: one code of 127.
    bound = BOUND if member == "copy" else 1 / 127
    timed(
        function, group=f"quantize_rows/{ROWS}x{WIDTH}/float32", member=member, oracle=want, bound=bound,
        flops=6.0 * ROWS * WIDTH, bytes_moved=5.0 * ROWS * WIDTH,
    )  # fmt: skip

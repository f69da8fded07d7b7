"""What the benches of the streaming ops share: data, blockwise products, and a clock for long calls."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from conftest import peak_bytes, row_error
from torch import Tensor

import semobridge_ext as sb

WIDTH = 512
CHECKED = 64  # queries held against the oracle; a query's result does not depend on its neighbours
BOUND = 1e-5  # float32 against float64; docs/methods.md lists the figures that were aimed at


@lru_cache(maxsize=2)
def rows_of_classes(rows: int, classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Unit rows [rows, D] around class centres inside a common cone, as CLIP's are, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, WIDTH, generator=generator)
    labels = torch.randint(0, classes, (rows,), generator=generator)
    x = torch.empty(rows, WIDTH)
    for part in torch.arange(rows).split(1 << 16):
        noise = torch.randn(len(part), WIDTH, generator=generator)
        x[part] = torch.nn.functional.normalize(centres[labels[part]] + 3 * noise + 1.5, dim=1)
    return x, labels


@lru_cache(maxsize=1)
def queries_of(rows: int, classes: int) -> Tensor:
    """Other drawings of the same classes."""
    return rows_of_classes(rows, classes, 1)[0].clone()


def product_in_blocks(queries: Tensor, keys: Tensor, columns: int) -> Callable[[], Tensor]:
    """The bare product cut into blocks whose output stays in cache; halves are widened block by block."""
    out = torch.empty(len(queries), columns)

    def run() -> Tensor:
        for block in keys.split(columns):
            torch.mm(queries, block.float().T, out=out[:, : len(block)])
        return out[:CHECKED, :1]

    return run


def time_few(
    benchmark: Any,
    function: Callable[[], Tensor],
    *,
    group: str,
    member: str,
    oracle: Tensor,
    flops: float,
    rounds: int = 3,
    bound: float = BOUND,
    **extra: Any,
) -> None:
    """`timed` for calls of many seconds: checked, its memory taken, then `rounds` rounds."""
    error = row_error(function(), oracle)
    assert error <= bound, f"{group} {member}: error {error:.2e} against float64 is above {bound:.0e}"
    peak = peak_bytes(function)
    benchmark.group, benchmark.name = group, f"{group} {member}"
    benchmark.extra_info.update(
        member=member, error=error, flops=flops, peak_bytes=peak, isa=sb.build_info()["isa"],
        threads=torch.get_num_threads(), torch=torch.__version__, **extra,
    )  # fmt: skip
    with torch.inference_mode():
        benchmark.pedantic(function, rounds=rounds, iterations=1)

"""Fixed random data, and the table that cases register in.

Letters: N queries · S keys · C classes · D features · T text width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
CASES: dict[str, Callable[[], Any]] = {}


def case(function: Callable[[], Any]) -> Callable[[], Any]:
    """Registers a function that returns nested dicts, sequences, tensors, arrays and numbers."""
    room = function.__module__.rpartition(".")[2]
    CASES[f"{room}.{function.__name__}"] = function
    return function


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The same numbers in every dtype, rounded."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def unit(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return normalize(draw(seed, *shape, dtype=torch.float64), dim=-1).to(dtype)


def codes(seed: int, count: int, classes: int) -> Tensor:  # [count] int64
    return torch.randint(classes, (count,), generator=torch.Generator().manual_seed(seed))


@functools.cache
def projection(width_in: int, width_out: int, rank: int, seed: int = 5) -> Tensor:  # [T, D]
    """`rank` singular values above the bridge's tolerance of 0.3, the others below it."""
    u, _, v = torch.linalg.svd(draw(seed, width_in, width_out, dtype=torch.float64), full_matrices=False)
    least = min(width_in, width_out)
    values = torch.cat([torch.linspace(3, 0.5, rank), torch.linspace(0.2, 0.05, least - rank)]).double()
    return (u * values @ v).float()


def gradients(
    function: Callable[..., Tensor], tensors: dict[str, Tensor], seed: int = 99, **options: Any
) -> dict[str, Tensor]:
    """The output and the gradient of every tensor, for a fixed random gradient of the output."""
    leaves = {name: value.detach().clone().requires_grad_() for name, value in tensors.items()}
    out = function(**leaves, **options)
    back = draw(seed, *out.shape, dtype=out.dtype)
    found = torch.autograd.grad(out, list(leaves.values()), back)
    return {"out": out, **{f"grad_{name}": g for name, g in zip(leaves, found, strict=True)}}


class Problem(NamedTuple):
    """A few-shot problem: class centres with noise, text that points roughly at them."""

    shots: Tensor  # [S, D]
    labels: Tensor  # [S]
    validation: Tensor  # [N, D]
    wanted: Tensor  # [N]
    queries: Tensor  # [N, D]
    targets: Tensor  # [N]
    text: Tensor  # [C, D] unit rows
    hidden: Tensor  # [C, T] unit rows
    projection: Tensor  # [T, D]


def problem(
    classes: int, shots: int, queries: int, width: int, width_in: int, dtype: torch.dtype = torch.float32
) -> Problem:
    centres = draw(1, classes, width)

    def part(seed: int, labels: Tensor) -> Tensor:
        return (centres[labels] + 1.5 * draw(seed, len(labels), width)).to(dtype)

    labels = torch.arange(classes).repeat(shots)
    wanted, targets = codes(2, queries, classes), codes(3, queries, classes)
    return Problem(
        part(4, labels), labels, part(5, wanted), wanted, part(6, targets), targets,
        normalize(centres + draw(7, classes, width), dim=1).to(dtype), unit(8, classes, width_in).to(dtype),
        projection(width_in, width, 3 * min(width, width_in) // 4),
    )  # fmt: skip

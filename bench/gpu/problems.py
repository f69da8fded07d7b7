"""What measure.py times: a problem is one call at one size, with its members and its float64 oracle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

import semobridge_ext as sb

# Beyond these a result is wrong, and its time means nothing.
BOUNDS = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 4e-2}
BACKENDS = ("auto", "native", "triton")

Call = Callable[[], Any]


class Prepared(NamedTuple):
    """A member ready to run. probe: gives what is held against float64; None: a call does."""

    call: Call
    probe: Call | None = None
    steps: int = 1  # of a loop in one call


Make = Callable[[], Prepared]  # packs and compiles, or refuses


class Sizes(NamedTuple):
    """Of all problems."""

    width: int  # D
    rows: tuple[int, ...]  # of bridge and predict
    queries: int  # of support_logits
    supports: tuple[int, ...]
    classes: int
    gallery: int
    searches: tuple[int, ...]  # queries of topk
    pairs: int  # rows of symmetric_kl
    towers: dict[str, tuple[int, int, int, int]]  # text: width, heads, layers, D
    vision: tuple[int, int, int, int, int]  # image size, patch, width, heads, layers
    batches: tuple[int, ...]  # of OTI
    patches: int  # batch of OVI
    shots: int
    context: int


REAL = Sizes(
    512, (1, 256, 65536), 1024, (16_000, 1_280_000), 1000, 1_000_000, (1, 1000), 4096,
    {"B/32": (512, 8, 12, 512), "L/14": (768, 12, 12, 768)}, (224, 32, 768, 12, 12), (1, 64, 2048), 32, 16,
    77,
)  # fmt: skip
TINY = Sizes(
    32, (1, 40), 16, (60,), 6, 90, (1, 7), 9, {"B/32": (32, 2, 2, 24), "L/14": (32, 2, 1, 16)},
    (16, 8, 32, 2, 2), (1, 3), 2, 2, 12,
)  # fmt: skip


@dataclass
class Problem:
    """One call at one size.

    Attributes:
        title: op, shape and dtype.
        members: what is timed, in order. `plain` is what a user would write, `library` the best-known one,
            `mm` the bare product, whose result is not looked at.
        check: a result's error against float64; bound: what ours may have.
        moved, operations: the least that any program of this call reads and writes, and computes.
        half: the operations are products of half types.
    """

    title: str
    members: dict[str, Make]
    check: Callable[[Any], float]
    bound: float
    moved: float
    operations: float
    half: bool


Lazy = Callable[[], Problem]  # its tensors live from this call to the end of its rows


def under(backend: str, call: Call) -> Call:
    def run() -> Any:
        with sb.backend(backend):
            return call()

    return call if backend == "auto" else run


def by_backend(call: Call, probe: Call | None = None) -> dict[str, Make]:
    """The public function under every backend."""

    def make(name: str) -> Prepared:
        return Prepared(under(name, call), probe and under(name, probe))

    return {name: partial(make, name) for name in BACKENDS}


def as_is(call: Callable[..., Any], *args: Any, **options: Any) -> Make:
    return lambda: Prepared(partial(call, *args, **options))


def compile_anew(call: Callable[..., Any]) -> Callable[..., Any]:
    """torch.compile for the very shapes of this problem, whatever was compiled before."""
    torch.compiler.reset()
    return torch.compile(call, dynamic=False)


def compiled(call: Callable[..., Any], *args: Any) -> Make:
    """torch.compile of a plain program."""
    return lambda: Prepared(partial(compile_anew(call), *args))


def draw(device: torch.device, seed: int, *size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal values, drawn on the device."""
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(*size, generator=generator, device=device).to(dtype)


def unit(
    device: torch.device, seed: int, *size: int, dtype: torch.dtype = torch.float32
) -> Tensor:  # [.., D]
    return torch.nn.functional.normalize(draw(device, seed, *size), dim=-1).to(dtype)


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

"""The bridge, and the general projection that it, IsoCLIP and PCA share, at D = T = 512 in float32.

Members: `eager` is the method's plain program (reference/, with the pseudo-inverse ready), `compile`
is torch.compile of it, `mm` is one bare [N, D]·[D, D] product into a ready output: the practical limit
of anything that has to multiply by a full matrix. Two families:

- `bridge`: 480 of 512 singular values pass the cut, so the bridge may use the cheap complement form,
  which needs less arithmetic than `mm`.
- `project_normalize`: a dense matrix without structure, all of `mm`'s arithmetic and the norm besides.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

import semobridge_ext as sb
from semobridge_ext.ops import Projection

ROWS = (1, 16, 256, 4096, 65536)
WIDTH, DROPPED = 512, 32
BOUND = 1e-5  # float32 against float64; docs/methods.md lists the figures that were aimed at
CHUNK = 4096
BRIDGE_MEMBERS = ("eager", "compile", "native", "mm")
PROJECT_MEMBERS = ("eager", "compile", "native", "mm")


class Case(NamedTuple):
    function: Callable[[], Tensor]
    oracle: Tensor
    flops: float


def orthogonal(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(WIDTH, WIDTH, dtype=torch.float64, generator=generator))[0]


@cache
def text_projection() -> Tensor:  # [T, D]
    """Singular values from 6 down to 0.4, and the last 32 from 0.25 to 0.05, under the cut of 0.3."""
    kept = torch.logspace(0.78, -0.4, WIDTH - DROPPED, dtype=torch.float64)
    spectrum = torch.cat([kept, torch.logspace(-0.6, -1.3, DROPPED, dtype=torch.float64)])
    return ((orthogonal(0) * spectrum) @ orthogonal(1).T).float()


@cache
def bridge() -> sb.Bridge:
    built = sb.Bridge(text_projection())
    assert built.rank == WIDTH - DROPPED
    return built


@lru_cache(maxsize=1)
def image_features(rows: int) -> Tensor:  # [N, D]
    """Raw CLIP-like features: a common mean (the cone), a falling spectrum, lengths around 10."""
    generator = torch.Generator().manual_seed(rows)
    axes = (orthogonal(2) * torch.logspace(0, -1.2, WIDTH, dtype=torch.float64)).float()
    x = torch.randn(rows, WIDTH, generator=generator) @ axes.T
    x += 5 * axes[:, 0] + 2 * axes[:, 1]
    return x * (10 / x.norm(dim=1).mean())


def in_float64(function: Callable[[Tensor], Tensor], rows: int) -> Tensor:
    """The oracle on the same float32 inputs, in chunks that keep its memory small."""
    return torch.cat([function(chunk.double()) for chunk in image_features(rows).split(CHUNK)])


@lru_cache(maxsize=1)
def bridge_oracle(rows: int) -> Tensor:
    w = text_projection().double()
    inverse = sb.reference.pinv(w)
    return in_float64(lambda f: sb.reference.bridge(f, w, inverse=inverse), rows)


@lru_cache(maxsize=1)
def mm_oracle(rows: int) -> Tensor:
    matrix = bridge().projector.double()
    return in_float64(lambda f: f @ matrix, rows)


@cache
def dense_matrix() -> Tensor:  # [D, D]
    generator = torch.Generator().manual_seed(4)
    return torch.randn(WIDTH, WIDTH, generator=generator) / WIDTH**0.5


@lru_cache(maxsize=2)
def project_oracle(rows: int, normalize: bool) -> Tensor:
    matrix = dense_matrix().double()
    return in_float64(lambda f: sb.reference.project_normalize(f, matrix, normalize=normalize), rows)


def bare_product(rows: int, matrix: Tensor) -> Callable[[], Tensor]:
    f, out = image_features(rows), torch.empty(rows, WIDTH)
    return lambda: torch.mm(f, matrix, out=out)


def compiled(program: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """torch.compile for this shape alone: earlier shapes would count towards dynamo's recompile limit."""
    torch.compiler.reset()
    return torch.compile(program, fullgraph=True, dynamic=False)


def bridge_case(member: str, rows: int) -> Case:
    f, w, built = image_features(rows), text_projection(), bridge()
    inverse = built.inverse.detach()
    square = 2.0 * rows * WIDTH * WIDTH
    if member == "mm":
        return Case(bare_product(rows, built.projector), mm_oracle(rows), square)
    if member == "native":
        # What the bridge folds to here: x − (x·V_dropped)·V_droppedᵀ.
        return Case(lambda: sb.bridge(f, bridge=built), bridge_oracle(rows), 4.0 * rows * WIDTH * DROPPED)

    def eager(rows: Tensor) -> Tensor:
        return sb.reference.bridge(rows, w, inverse=inverse)

    program = compiled(eager) if member == "compile" else eager
    return Case(lambda: program(f), bridge_oracle(rows), 2 * square)


def project_case(member: str, rows: int) -> Case:
    f, matrix = image_features(rows), dense_matrix()
    square = 2.0 * rows * WIDTH * WIDTH
    if member == "mm":
        return Case(bare_product(rows, matrix), project_oracle(rows, False), square)
    if member == "native":
        prepared = Projection(matrix)
        return Case(lambda: prepared(f), project_oracle(rows, True), square)

    def eager(rows: Tensor) -> Tensor:
        return sb.reference.project_normalize(rows, matrix)

    program = compiled(eager) if member == "compile" else eager
    return Case(lambda: program(f), project_oracle(rows, True), square)


def run(timed: Callable[..., None], case: Case, op: str, member: str, rows: int, matrices: int) -> None:
    timed(
        case.function, group=f"{op}/{rows}x{WIDTH}/float32", member=member, oracle=case.oracle,
        bound=BOUND, flops=case.flops, bytes_moved=4.0 * (2 * rows * WIDTH + matrices),
        rows=rows, width=WIDTH,
    )  # fmt: skip


# The members of one group follow one another, so that they meet the same state of the machine.
@pytest.mark.parametrize(("rows", "member"), [(n, m) for n in ROWS for m in BRIDGE_MEMBERS])
def test_bridge(timed, rows: int, member: str) -> None:
    matrices = {"mm": WIDTH**2, "native": 2 * WIDTH * DROPPED}.get(member, 2 * WIDTH**2)
    run(timed, bridge_case(member, rows), "bridge", member, rows, matrices)


@pytest.mark.parametrize(("rows", "member"), [(n, m) for n in ROWS for m in PROJECT_MEMBERS])
def test_project_normalize(timed, rows: int, member: str) -> None:
    run(timed, project_case(member, rows), "project_normalize", member, rows, WIDTH**2)

"""symmetric_kl: the loss and its gradients of N rows of C logits, in float32.

Members: `eager` is two calls of `kl_div` on two `log_softmax`, with autograd's gradients; `compile` the same
under torch.compile; `native` one pass each way; `mm` no product but copies, of both arrays once for the loss
and twice with gradients: about what memory alone costs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import pytest
import torch
from torch import Tensor

import semobridge_ext as sb

SIZES = ((256, 100), (4096, 1000))  # rows, classes
MEMBERS = ("eager", "compile", "native", "mm")


@lru_cache(maxsize=1)
def problem(rows: int, classes: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    a = torch.randn(rows, classes, generator=g)
    return 3 * a, 3 * a + torch.randn(rows, classes, generator=g)


def plain(a: Tensor, b: Tensor) -> Tensor:
    """½·KL both ways, the batch's mean, as one writes it."""
    log_p, log_q = torch.log_softmax(a, 1), torch.log_softmax(b, 1)
    divergence = torch.nn.functional.kl_div
    return 0.5 * (
        divergence(log_q, log_p, reduction="batchmean", log_target=True)
        + divergence(log_p, log_q, reduction="batchmean", log_target=True)
    )


def loss(member: str) -> Callable[[Tensor, Tensor], Tensor]:
    if member == "compile":
        torch.compiler.reset()  # earlier shapes would count towards dynamo's recompile limit
        return torch.compile(plain, fullgraph=True, dynamic=False)
    return {"eager": plain, "native": sb.ops.symmetric_kl}[member]


@pytest.mark.parametrize("member", MEMBERS)
@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
def test_loss(timed, size: tuple[int, int], member: str) -> None:
    a, b = problem(*size)
    if member == "mm":
        to = torch.empty_like(a)

        def run() -> Tensor:
            to.copy_(a)
            return to.copy_(b)

        oracle = b.double()
    else:
        function, oracle = loss(member), plain(a.double(), b.double()).reshape(1, 1)

        def run() -> Tensor:
            return function(a, b).reshape(1, 1)

    timed(
        run, group=f"symmetric_kl/{size[0]}x{size[1]}/float32", member=member, oracle=oracle, bound=1e-5,
        flops=20.0 * a.numel(), bytes_moved=8.0 * a.numel(),
    )  # fmt: skip


@pytest.mark.parametrize("member", MEMBERS)
@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
def test_loss_and_gradients(timed, size: tuple[int, int], member: str) -> None:
    leaves = [t.clone().requires_grad_() for t in problem(*size)]
    a, b = (t.detach() for t in leaves)
    wide = [t.double().requires_grad_() for t in (a, b)]
    oracle = torch.autograd.grad(plain(*wide), wide)[0]
    if member == "mm":
        to_a, to_b = torch.empty_like(a), torch.empty_like(b)

        def run() -> Tensor:
            for _ in range(2):  # once to read both, once to read and write both
                to_a.copy_(a)
                to_b.copy_(b)
            return to_a

        oracle = a.double()
    else:
        function = loss(member)

        @torch.inference_mode(False)
        @torch.enable_grad()
        def run() -> Tensor:
            return torch.autograd.grad(function(*leaves), leaves)[0]

    timed(
        run, group=f"symmetric_kl with gradients/{size[0]}x{size[1]}/float32", member=member, oracle=oracle,
        bound=3e-5, flops=40.0 * a.numel(), bytes_moved=24.0 * a.numel(),
    )  # fmt: skip

"""One full-batch step of SeMoBridge-T: loss, gradients and AdamW, at D = T = 512 in float32.

Members: `eager` is the authors' program (_engines/bridge_training/reference.py) with autograd and
torch.optim.AdamW,
`native` the hand-written step (_engines/bridge_training/step.py), `mm` the bare products of the hand-written
step, torch.mm into ready outputs: 3 of N·T·D and 4 of N·C·D multiply-adds.

The learning rate is 0, so that every step does the same work at the same parameters and its gradient
can be held against float64 autograd.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

import semobridge_ext as sb
from semobridge_ext._engines.bridge_training.reference import semobridge_t_loss
from semobridge_ext._engines.bridge_training.step import BridgeTrainer

SIZES = ((47, 16), (1000, 16))  # classes, shots
WIDTH = 512
BOUND = 1e-3  # of the gradient's rows: a softmax at logit scale 100 amplifies float32's rounding
MEMBERS = ("eager", "native", "mm")


class Problem(NamedTuple):
    inverse: Tensor  # [D, T]
    projection: Tensor  # [T, D]
    shots: Tensor  # [N, D]
    labels: Tensor  # [N]
    text: Tensor  # [C, D]
    hidden: Tensor  # [C, T]


@lru_cache(maxsize=1)
def problem(classes: int, shots: int) -> Problem:
    g = torch.Generator().manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=g)

    projection = draw(WIDTH, WIDTH) * 0.06
    labels = torch.arange(classes).repeat_interleave(shots)
    means = draw(classes, WIDTH)
    images = means[labels] + draw(len(labels), WIDTH)
    text, hidden = normalize(means + draw(classes, WIDTH), dim=1), normalize(draw(classes, WIDTH), dim=1)
    inverse = sb.Bridge(projection).inverse.detach()
    return Problem(inverse, projection, images, labels, text, hidden)


@lru_cache(maxsize=1)
def oracle(classes: int, shots: int) -> Tensor:
    """The gradient of W⁺ in float64."""
    p = problem(classes, shots)
    leaf = p.inverse.double().requires_grad_()
    tau = torch.zeros(classes, WIDTH, dtype=torch.float64)
    rest = p.projection.double(), p.shots.double(), p.labels, p.text.double(), p.hidden.double()
    loss, _ = semobridge_t_loss(leaf, tau, *rest)
    return torch.autograd.grad(loss, leaf)[0]


def eager_step(p: Problem):
    leaf, tau = p.inverse.clone().requires_grad_(), torch.zeros(len(p.text), WIDTH, requires_grad=True)
    optimizer = torch.optim.AdamW([leaf, tau], lr=0.0, weight_decay=0.01)

    def step() -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            optimizer.zero_grad()
            loss, _ = semobridge_t_loss(leaf, tau, *p[1:])
            loss.backward()
            optimizer.step()
        return leaf.grad

    return step


def native_step(p: Problem):
    trainer = BridgeTrainer(*p)
    trainer.plan([0.0], 0.01)

    def step() -> Tensor:
        trainer.steps = 0
        trainer.step()
        return trainer.gradients["inverse"]

    return step


def bare_products(p: Problem):
    n, c = len(p.shots), len(p.text)
    rows = max(64, (1 << 20) // (2 * c))
    e, h = torch.empty(n, WIDTH), torch.empty(n, WIDTH)
    wide, logits, z = torch.randn(WIDTH, 2 * c), torch.empty(rows, 2 * c), torch.zeros(WIDTH, 2 * c)
    back = torch.empty(WIDTH, WIDTH)
    gram = p.projection @ p.projection.T

    def run() -> Tensor:
        torch.mm(p.shots, p.inverse, out=e)
        torch.mm(e, gram, out=h)
        for f in p.shots.split(rows):
            torch.mm(f, wide, out=logits[: len(f)])
            torch.addmm(z, f.T, logits[: len(f)], beta=0, out=z)
        torch.mm(p.shots.T, h, out=back)
        return e

    return run


@pytest.mark.parametrize("member", MEMBERS)
@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"C={s[0]},K={s[1]}")
def test_step(timed, size: tuple[int, int], member: str) -> None:
    p, (n, c) = problem(*size), (size[0] * size[1], size[0])
    flops = 2.0 * n * WIDTH * (3 * WIDTH + 4 * c)
    make = {"eager": eager_step, "native": native_step, "mm": bare_products}[member]
    exact = p.shots.double() @ p.inverse.double() if member == "mm" else oracle(*size)
    group = f"semobridge_t step/C={c},K={size[1]},D=512/float32"
    timed(
        make(p), group=group, member=member, oracle=exact, bound=BOUND, flops=flops,
        bytes_moved=4.0 * (6 * n * WIDTH + 7 * WIDTH * WIDTH),
    )  # fmt: skip

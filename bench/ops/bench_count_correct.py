"""The search of the blend: one trial, and a search of 1000 with its preparation, in float32.

Members of one trial: `eager` is the formula on three ready [N, C] blocks as the authors compute it,
the class weights as a dense diagonal matrix; `column scale` the same with a column scale; `native`
_ops/count_correct/op.py. Every member's count of correct rows is held against a float64 evaluation of the
same
blocks: `native` must be equal, the float32 programs may differ where two logits round to a tie.

`native, 1000 at once` looks at the classes that can win once for all trials; `native, prepared` makes
the blocks, prunes them and then runs 1000 trials one after the other, as a sequential sampler does.
Their figures are of the whole search. The sampler's own time is not in them.
"""

from __future__ import annotations

from functools import cache, lru_cache

import pytest
import torch
from torch import Tensor

import semobridge_ext as sb
from semobridge_ext._ops.blend_logits.eager import blend_logits
from semobridge_ext._ops.blend_logits.spec import BlendParams, Similarities
from semobridge_ext._ops.count_correct.op import CorrectCounter

SIZES = ((10000, 1000), (3970, 397))  # validation rows, classes
WIDTH, TRIALS = 512, 1000
ONE = BlendParams(0.7, 3.0, 5.0, 2.0, 0.9, 0.6, 0.8)
MEMBERS = ("eager", "column scale", "native")
SEARCHES = ("native, 1000 at once", "native, prepared")


@lru_cache(maxsize=1)
def problem(rows: int, classes: int) -> tuple[sb.SeMoBridgeClassifier, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=g)

    means, labels = draw(classes, WIDTH), torch.arange(classes).repeat_interleave(4)
    targets = torch.randint(classes, (rows,), generator=g)
    bridge = sb.Bridge(draw(WIDTH, WIDTH) * 0.05)
    clf = sb.SeMoBridgeClassifier(bridge, means + 3.6 * draw(classes, WIDTH))
    clf.fit(means[labels] + 3.6 * draw(len(labels), WIDTH), labels)
    return clf, means[targets] + 3.6 * draw(rows, WIDTH), targets


@lru_cache(maxsize=1)
def blocks(rows: int, classes: int) -> Similarities:
    clf, x, _ = problem(rows, classes)
    return clf.similarities(x)


@lru_cache(maxsize=1)
def exact(rows: int, classes: int) -> Tensor:
    """The float64 count, as a [1, 1] tensor."""
    clf, _, targets = problem(rows, classes)
    right = 0
    for start in range(0, rows, 1000):
        z = Similarities(*(b[start : start + 1000].double() for b in blocks(rows, classes)))
        best = blend_logits(z, ONE, clf.exponents_).argmax(dim=1)
        right += int((best == targets[start : start + 1000]).sum())
    return torch.tensor([[float(right)]], dtype=torch.float64)


def count(logits: Tensor, targets: Tensor) -> Tensor:
    return (logits.argmax(dim=1) == targets).sum().double().reshape(1, 1)


def eager_trial(size: tuple[int, int]) -> Tensor:
    clf, _, targets = problem(*size)
    z, p = blocks(*size), ONE
    few = p.lambda2 * torch.exp(-p.beta * (1 - z[1])) + p.lambda3 * torch.exp(-p.gamma * (1 - z[2]))
    weights = torch.diag(torch.exp(p.s * clf.exponents_)).float()
    return count(p.lambda1 * torch.exp(-p.alpha * (1 - z[0])) + few @ weights, targets)


def scaled_trial(size: tuple[int, int]) -> Tensor:
    clf, _, targets = problem(*size)
    return count(blend_logits(blocks(*size), ONE, clf.exponents_), targets)


@lru_cache(maxsize=1)
def objective(rows: int, classes: int) -> CorrectCounter:
    clf, x, targets = problem(rows, classes)
    return CorrectCounter(clf._operand, x, targets)


@cache
def trials() -> list[BlendParams]:
    g = torch.Generator().manual_seed(1)
    top = torch.tensor([1.5, 10, 10, 10, 1, 1, 1], dtype=torch.float64)
    table = torch.rand(TRIALS, 7, generator=g, dtype=torch.float64) * top
    return [ONE, *(BlendParams(*row) for row in table[1:].tolist())]


@pytest.mark.parametrize("member", MEMBERS)
@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
def test_trial(timed, size: tuple[int, int], member: str) -> None:
    run = {
        "eager": lambda: eager_trial(size),
        "column scale": lambda: scaled_trial(size),
        "native": lambda: torch.tensor([objective(*size).correct([ONE])], dtype=torch.float64),
    }[member]
    # A row or two in 10000 tie in float32.
    bound = 0.0 if member == "native" else 2e-3
    values = 3.0 * size[0] * size[1]
    timed(
        run, group=f"blend search, one trial/{size[0]}x{size[1]}/float32", member=member,
        oracle=exact(*size), bound=bound, flops=2 * values, bytes_moved=4 * values,
    )  # fmt: skip


@pytest.mark.parametrize("member", SEARCHES)
@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
def test_search(timed, size: tuple[int, int], member: str) -> None:
    def at_once() -> Tensor:
        return torch.tensor([objective(*size).correct(trials())[:1]], dtype=torch.float64)

    def prepared() -> Tensor:
        clf, x, targets = problem(*size)
        fresh = CorrectCounter(clf._operand, x, targets)
        return torch.tensor([[fresh.correct([t])[0] for t in trials()][:1]], dtype=torch.float64)

    values = 3.0 * size[0] * size[1] * TRIALS
    timed(
        at_once if member == SEARCHES[0] else prepared, member=member, oracle=exact(*size), bound=0.0,
        group=f"blend search, 1000 trials/{size[0]}x{size[1]}/float32", flops=2 * values,
        bytes_moved=4 * values,
    )  # fmt: skip

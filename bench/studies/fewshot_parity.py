"""Two comparisons with the plain programs, on an embedded set; `python bench/studies/fewshot_parity.py`.

Training: SeMoBridge-T by hand-written gradients against autograd with torch.optim.AdamW, the same start,
schedule and order of operations in the tower of losses: the losses' largest relative difference over the
first 200 steps and over all, and both programs' accuracies after the full schedule.

Search: the counts of `--trials` random trials against a plain float64 evaluation of the formula.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor
from torch.nn.functional import normalize

import semobridge_ext as sb
from semobridge_ext._engines.bridge_training.reference import semobridge_t_loss
from semobridge_ext._engines.bridge_training.step import BridgeTrainer
from semobridge_ext._ops.blend_logits.eager import blend_logits
from semobridge_ext._ops.blend_logits.spec import BlendParams
from semobridge_ext._ops.count_correct.op import CorrectCounter
from semobridge_ext.cli import fewshot_problems
from semobridge_ext.fewshot.draws import sample_support
from semobridge_ext.fewshot.study import Problem
from semobridge_ext.fewshot.training_schedule import PRESETS


def accuracy(problem: Problem, inverse: Tensor, tau: Tensor, shots: Tensor, labels: Tensor) -> float:
    """Of the trained bridge's prototypes alone on the test part, in float64, by the definition."""
    w = problem.text_projection.double()
    e = normalize(shots.double() @ inverse.double() + tau.double()[labels], dim=1)
    bridged = e @ w
    sums = torch.zeros(len(tau), w.shape[1], dtype=torch.float64).index_add_(0, labels, bridged)
    logits = normalize(problem.test[0].double(), dim=1) @ normalize(sums, dim=1).T
    return float((logits.argmax(1) == problem.test[1]).double().mean())


def train_both(problem: Problem, count: int, steps: int) -> None:
    chosen = sample_support(problem.train[1], count, 0)
    order = torch.argsort(problem.train[1][chosen], stable=True)
    shots, labels = problem.train[0][chosen][order], problem.train[1][chosen][order]
    text, hidden = normalize(problem.text, dim=1), normalize(problem.hidden, dim=1)
    start = sb.Bridge(problem.text_projection).inverse.detach().float()
    schedule = PRESETS["paper"]._replace(steps=steps)
    begin = time.perf_counter()
    trainer = BridgeTrainer(start, problem.text_projection, shots, labels, text, hidden)
    trainer.plan([schedule.rate(i) for i in range(steps)], 0.01)
    for _ in range(steps):
        trainer.step()
    ours = trainer.losses.double()
    ours_seconds = time.perf_counter() - begin

    begin = time.perf_counter()
    inverse, tau = start.clone().requires_grad_(), torch.zeros(len(text), start.shape[1], requires_grad=True)
    optimizer = torch.optim.AdamW([inverse, tau], lr=1.0, weight_decay=0.01)
    losses = []
    for i in range(steps):
        optimizer.param_groups[0]["lr"] = schedule.rate(i)
        optimizer.zero_grad()
        loss, _ = semobridge_t_loss(inverse, tau, problem.text_projection, shots, labels, text, hidden)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    eager_seconds = time.perf_counter() - begin
    theirs = torch.stack(losses).double()
    apart = (ours - theirs).abs() / theirs
    p = trainer.parameters
    print(
        f"{problem.name}, {count} shots, {len(shots)} rows, {steps} steps: losses {float(theirs[0]):.4f} -> "
        f"{float(theirs[-1]):.4f}, relative difference {float(apart[:200].max()):.1e} over 200 steps, "
        f"{float(apart.max()):.1e} over all; bridged prototypes' test accuracy "
        f"{accuracy(problem, p['inverse'], p['tau'], shots, labels):.4%} ours, "
        f"{accuracy(problem, inverse.detach(), tau.detach(), shots, labels):.4%} autograd; "
        f"{ours_seconds:.1f} s against {eager_seconds:.1f} s"
    )


def search_counts(problem: Problem, count: int, trials: int) -> None:
    chosen = sample_support(problem.train[1], count, 0)
    clf = sb.SeMoBridgeClassifier(sb.Bridge(problem.text_projection), problem.text)
    clf.fit(problem.train[0][chosen], problem.train[1][chosen])
    x, targets = problem.val
    generator = torch.Generator().manual_seed(0)
    top = torch.tensor([1.5, 10, 10, 10, 1, 1, 1], dtype=torch.float64)
    table = torch.rand(trials, 7, generator=generator, dtype=torch.float64) * top
    params = [BlendParams(*row) for row in table.tolist()]
    counts = CorrectCounter(clf._operand, x, targets).correct(params)
    blocks = type(clf.similarities(x))(*(b.double() for b in clf.similarities(x)))
    plain = [int((blend_logits(blocks, p, clf.exponents_).argmax(1) == targets).sum()) for p in params]
    equal = sum(a == b for a, b in zip(counts, plain, strict=True))
    print(
        f"{problem.name}: {equal} of {trials} trials count as the plain float64 program does, on "
        f"{len(x)} x {len(problem.text)}; counts from {min(plain)} to {max(plain)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--set", default="logos")
    parser.add_argument("--shots", type=int, default=4)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--trials", type=int, default=1000)
    args = parser.parse_args()
    (problem,) = fewshot_problems.of_sets(args.set)
    search_counts(problem, args.shots, args.trials)
    train_both(problem, args.shots, args.steps)


if __name__ == "__main__":
    main()

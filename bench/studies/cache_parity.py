"""Cache models against the authors' plain programs; `python bench/studies/cache_parity.py`, about a minute.

On an embedded set. Search: picks and times of the authors' grid against their loop, one evaluation a value.
Tip-Adapter takes the whole grid, APE every twentieth β of it. Both count in float32.

At a larger size: 2000 rows, 1600 shots of 100 made classes. The plain loop runs every 40th β; its time is
that of all by their number.

Training: APE-T against autograd on [N, S] arrays with torch.optim.AdamW: losses and test accuracies.

Picks (`--picks`): where the values of the own grid fall, by set and number of shots.
"""

from __future__ import annotations

import argparse
import math
import time
from itertools import product

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize, one_hot

import semobridge_ext as sb
from semobridge_ext.cli import fewshot_problems
from semobridge_ext.fewshot import published
from semobridge_ext.fewshot.cache_search import search
from semobridge_ext.fewshot.draws import sample_support
from semobridge_ext.fewshot.published import Grid
from semobridge_ext.fewshot.study import Problem


def plain_search(clf: sb.TipAdapter, x: Tensor, y: Tensor, grid: Grid) -> tuple:
    """The authors' loop: everything anew for every value, the first best kept."""
    unit, votes = normalize(x, dim=1), one_hot(clf.labels_, len(clf.classes_)).float()
    small = clf._small(unit) if isinstance(clf, sb.APE) else unit
    divergence = clf._divergence().unsqueeze(1) if isinstance(clf, sb.APE) else None
    text, cosines = clf._text_logits(unit), small @ clf.keys_.T
    best: tuple = (-1,)
    for beta, alpha, gamma in product(grid.betas, grid.alphas, grid.gammas or (None,)):
        values = votes if gamma is None else votes * (divergence * gamma).exp()
        logits = text + alpha * ((-(beta - beta * cosines)).exp() @ values)
        right = int((logits.argmax(dim=1) == y).sum())
        if right > best[0]:
            best = right, alpha, beta, gamma
    return best


def compare_search(problem: Problem, clf: sb.TipAdapter, grid: Grid) -> None:
    x, y = problem.val
    began = time.perf_counter()
    unit = clf._unit(x)
    ours = search(grid, [(unit, clf._text_logits(unit), y)], clf._searched(grid.gammas), None, False)
    seconds = time.perf_counter() - began
    began = time.perf_counter()
    theirs = plain_search(clf, x, y, grid)
    plain = time.perf_counter() - began
    size = " x ".join(str(len(v)) for v in grid if v)
    print(
        f"{problem.name}, {type(clf).__name__}, grid {size}, {len(x)} rows, {len(problem.text)} classes: "
        f"right, alpha, beta, gamma {tuple(ours)} ours, {theirs} plain; {seconds:.2f} s against "
        f"{plain:.2f} s, {plain / seconds:.1f} times"
    )


def compare_large() -> None:
    generator = torch.Generator().manual_seed(0)
    classes, shots, rows, width = 100, 16, 2000, 512

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    means, offset = normalize(draw(classes, width), dim=1), 0.05 * draw(width)

    def near(of: Tensor, share: float) -> Tensor:
        return normalize(share * means[of] + 0.045 * draw(len(of), width) + offset, dim=1)

    labels = torch.arange(classes).repeat_interleave(shots)
    y = torch.randint(classes, (rows,), generator=generator)
    clf = sb.TipAdapter(near(torch.arange(classes), 0.25)).fit(near(labels, 0.6), labels)
    x, grid = near(y, 0.6), published.grid_of("TipAdapter.tune", "imagenet", published.TIP_ADAPTER, False)
    times = []
    for _ in range(5):
        began = time.perf_counter()
        unit = clf._unit(x)
        parts = [(unit, clf._text_logits(unit), y)]
        search(grid, parts, clf._searched(grid.gammas), None, False)
        times.append(time.perf_counter() - began)
    seconds, few = sorted(times)[2], grid._replace(betas=grid.betas[::40])
    found = search(few, parts, clf._searched(grid.gammas), None, False)
    began = time.perf_counter()
    theirs = plain_search(clf, x, y, few)
    plain = (time.perf_counter() - began) * len(grid.betas) / len(few.betas)
    print(
        f"{rows} rows, {len(labels)} shots, {classes} classes, grid {len(grid.betas)} x {len(grid.alphas)}: "
        f"{seconds:.2f} s against {plain:.1f} s, {plain / seconds:.0f} times; of {len(few.betas)} betas "
        f"{tuple(found)} ours, {theirs} plain"
    )


def compare_training(problem: Problem, x: Tensor, y: Tensor, epochs: int) -> None:
    clf = sb.APET(problem.text, epochs=epochs).fit(x, y)
    shots, text = normalize(x, dim=1), normalize(problem.text, dim=1)
    kept, votes = clf.channels_, one_hot(y, len(text)).float()
    residual = torch.zeros(len(text), len(kept), requires_grad=True)
    weights = torch.ones(len(x), 1, requires_grad=True)
    optimizer = torch.optim.AdamW([residual, weights], lr=1e-4, eps=1e-3, weight_decay=0.1)
    generator, losses = torch.Generator().manual_seed(0), []
    steps = epochs * math.ceil(len(x) / 256)

    def logits(queries: Tensor) -> Tensor:
        wide = torch.zeros(len(text), text.shape[1]).index_copy(1, kept, residual)
        cache = (-(1 - queries @ (shots + wide[y]).T)).exp() @ (votes * weights)
        return 100 * queries @ (text + wide).T + 1.17 * cache

    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator).split(256):
            optimizer.param_groups[0]["lr"] = 1e-4 * 0.5 * (1 + math.cos(math.pi * len(losses) / steps))
            loss = cross_entropy(logits(shots[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
    apart = (clf.losses_ - torch.stack(losses)).abs() / torch.stack(losses)
    queries, wanted = problem.test
    with torch.no_grad():
        theirs = float((logits(normalize(queries, dim=1)).argmax(dim=1) == wanted).double().mean())
    print(
        f"{problem.name}, APE-T, {len(x)} shots, {steps} steps: losses {float(losses[0]):.4f} -> "
        f"{float(losses[-1]):.4f}, relative difference {float(apart.max()):.1e}; test accuracy "
        f"{clf.score(queries, wanted):.4%} ours, {theirs:.4%} autograd"
    )


def picks(problem: Problem, count: int, seed: int) -> None:
    rows = sample_support(problem.train[1], count, seed)
    x, y = problem.train[0][rows], problem.train[1][rows]
    for model in (sb.TipAdapter, sb.APE):
        clf = model(problem.text).fit(x, y).tune(*problem.val)
        shown = f"{clf.alpha_:.2f} | {clf.beta_:.2f}" + (f" | {clf.gamma_:g}" if model is sb.APE else " | ")
        val, test = (100 * clf.score(*part) for part in (problem.val, problem.test))
        print(
            f"| {problem.name} | {count} | {model.__name__} | {shown} | {val:.1f} | {test:.1f} |", flush=True
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--set", default="logos")
    parser.add_argument("--shots", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--picks", action="store_true")
    args = parser.parse_args()
    if args.picks:
        print("| set | shots | model | alpha | beta | gamma | validation, % | test, % |\n" + "|---" * 8 + "|")
        for problem in fewshot_problems.of_sets("all"):
            for count in (1, 2):
                picks(problem, count, 0)
        return
    (problem,) = fewshot_problems.of_sets(args.set)
    rows = sample_support(problem.train[1], args.shots, 0)
    x, y = problem.train[0][rows], problem.train[1][rows]
    tip = sb.TipAdapter(problem.text).fit(x, y)
    compare_search(
        problem, tip, published.grid_of("TipAdapter.tune", "imagenet", published.TIP_ADAPTER, False)
    )
    grid = published.grid_of("APE.tune", "caltech101", published.APE, True)
    ape = sb.APE(problem.text).fit(x, y)
    compare_search(problem, ape, grid._replace(betas=grid.betas[::20]))
    compare_large()
    compare_training(problem, x, y, args.epochs)


if __name__ == "__main__":
    main()

"""Fit and search of GDA, ProKeR, LP++ and ProLIP against plain programs, in turns in one run.

    python bench/studies/closed_forms.py

The plain programs are those of semobridge_ext/fewshot/reference.py: a pseudo-inverse for every α, a dense
solve for every pair (β, λ), autograd with torch.optim for the trainings. They run in the dtype of the
estimators' steps: GDA and ProKeR in float64, the trainings in float32. Before anything is timed, both sides
must choose the same parameters, or reach rows that differ by a thousandth of their length at most.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

import semobridge_ext as sb
from semobridge_ext.fewshot import reference

BOUND = 1e-3  # of a row's length


class Data(NamedTuple):
    before: Tensor  # [M, V] shots before the projection
    shots: Tensor  # [M, D]
    labels: Tensor  # [M]
    queries: Tensor  # [N, D] for the search
    targets: Tensor  # [N]
    text: Tensor  # [C, D]
    projection: Tensor  # [V, D]


def made(classes: int, shots: int, width: int, hidden: int, rows: int) -> Data:
    """Classes whose texts are near their images, with enough noise that a search has something to find."""
    g = torch.Generator().manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=g)

    labels = torch.arange(classes).repeat_interleave(shots)
    targets = torch.randint(classes, (rows,), generator=g)
    projection, centres = draw(hidden, width) / hidden**0.5, draw(classes, hidden)
    before, unseen = (centres[y] + 2.5 * draw(len(y), hidden) for y in (labels, targets))
    text = (centres + 4 * draw(classes, hidden)) @ projection
    return Data(before, before @ projection, labels, unseen @ projection, targets, text, projection)


def near(got: Tensor, want: Tensor) -> None:
    wide = want.double()
    error = torch.linalg.vector_norm(got.double() - wide, dim=1) / torch.linalg.vector_norm(wide, dim=1)
    if not float(error.max()) <= BOUND:
        raise SystemExit(f"rows differ by {float(error.max()):.2g} of their length")


Pair = tuple[Callable[[], object], Callable[[], object]]  # ours, the plain program


def gda(d: Data) -> Pair:
    x, q, t = (normalize(rows.double(), dim=1) for rows in (d.shots, d.queries, d.text))

    def ours() -> float:
        return sb.GDA(d.text).fit(d.shots, d.labels).tune(d.queries, d.targets).alpha_

    def plain() -> float:
        right = []
        for alpha in sb.GDA.ALPHAS:
            w, b = reference.gda_weights(x, d.labels, len(t))
            right.append(int(((100 * q @ t.T + alpha * (q @ w + b)).argmax(dim=1) == d.targets).sum()))
        return sb.GDA.ALPHAS[right.index(max(right))]

    return ours, plain


def proker(d: Data) -> Pair:
    x, q, t = (normalize(rows.double(), dim=1) for rows in (d.shots, d.queries, d.text))

    def ours() -> tuple[float, float]:
        clf = sb.ProKeR(d.text).fit(d.shots, d.labels).tune(d.queries, d.targets)
        return clf.beta_, clf.ridge_

    def plain() -> tuple[float, float]:
        best = (-1, 0.0, 0.0)
        for beta in sb.ProKeR.BETAS:
            kernel = torch.exp(-beta * (1 - q @ x.T))
            for ridge in sb.ProKeR.LAMBDAS:
                logits = q @ t.T + kernel @ reference.proker_duals(x, d.labels, t, beta, ridge)
                right = int((logits.argmax(dim=1) == d.targets).sum())
                if right > best[0]:
                    best = right, beta, ridge
        return best[1:]

    return ours, plain


def probe(d: Data) -> Pair:
    x, q, t = (normalize(rows, dim=1) for rows in (d.shots, d.queries, d.text))

    def ours() -> Tensor:
        return sb.LPPlusPlus(d.text).fit(d.shots, d.labels).logits(d.queries)

    def plain() -> Tensor:
        w, b, alpha, _ = reference.linear_probe(x, d.labels, t)
        return q @ w.T + b + alpha * (q @ t.T)

    return ours, plain


def projection(d: Data) -> Pair:
    t = normalize(d.text, dim=1)
    penalty = len(t) / len(d.labels)

    def ours() -> Tensor:
        return sb.ProLIP(d.projection, d.text).fit(d.before, d.labels).projection_

    def plain() -> Tensor:
        return reference.trained_projection(d.before, d.labels, d.projection, t, penalty=penalty, lr=1e-5)[0]

    return ours, plain


CASES = {"GDA": gda, "ProKeR": proker, "LP++": probe, "ProLIP": projection}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="turns (default: 3)")
    parser.add_argument("--classes", type=int, default=50)
    parser.add_argument("--shots", type=int, default=8)
    args = parser.parse_args()
    d = made(args.classes, args.shots, 512, 768, 1000)
    sizes = f"{args.classes} classes × {args.shots} shots, 768 → 512, 1000 rows"
    print(f"{torch.get_num_threads()} threads; {sizes}")
    print("| estimator | ours, s | plain, s | plain/ours |\n|---|---:|---:|---:|")
    for name, case in CASES.items():
        ours, plain = case(d)
        got, want = ours(), plain()
        if isinstance(got, Tensor) and isinstance(want, Tensor):
            near(got, want)
        elif got != want:
            raise SystemExit(f"{name}: the search chose {got}, the plain program {want}")
        seconds: tuple[list[float], list[float]] = ([], [])
        for _ in range(args.rounds):
            for run, taken in zip((ours, plain), seconds, strict=True):
                began = time.perf_counter()
                run()
                taken.append(time.perf_counter() - began)
        a, b = (statistics.median(taken) for taken in seconds)
        print(f"| {name} | {a:.3f} | {b:.3f} | {b / a:.1f} |", flush=True)


if __name__ == "__main__":
    main()

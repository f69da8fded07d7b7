"""The demo's few-shot figures: methods of the study on the embedded sets. Plain numbers, no printing."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from semobridge_ext.fewshot import study
from semobridge_ext.fewshot.study_estimators import EstimatorMethods, Options

METHODS = (
    "zero-shot",
    "nearest class mean",
    "Tip-Adapter",
    "GDA",
    "LDA",
    "blend without bridge",
    "SeMoBridge",
    "SeMoBridge-T",
)
BASELINE, CONTROL = METHODS[0], "blend without bridge"
# The fast preset's rates on fewer steps: training is what the demo's time goes to.
OPTIONS = Options(trials=200, sampler="random", preset="fast", steps=150)
# ours, what it is held against
COMPARISONS = (
    *((method, BASELINE) for method in METHODS[1:]),
    ("SeMoBridge", CONTROL),
    ("SeMoBridge-T", "SeMoBridge"),
)
MEAN = "mean"


def every(dataset: Any, step: int) -> Any:
    """The set with every `step`-th of its classes and their drawings, from the first on."""
    kept = torch.as_tensor(dataset.labels) % step == 0
    parts = {name: getattr(dataset, name)[kept] for name in ("images", "train", "val", "test")}
    styles = [style for style, keep in zip(dataset.styles, kept.tolist(), strict=True) if keep]
    return dataclasses.replace(
        dataset, labels=dataset.labels[kept] // step, class_names=dataset.class_names[::step], styles=styles,
        **parts,
    )  # fmt: skip


def most_shots(dataset: Any) -> int:
    """The most shots that at least half of the classes can give."""
    labels = torch.as_tensor(dataset.labels)[torch.as_tensor(dataset.train)]
    return study.reachable(labels, range(1, int(labels.bincount().max()) + 1))[-1]


def set_figures(
    problem: study.Problem, shots: Sequence[int], seeds: Sequence[int], progress: study.Progress | None = None
) -> dict[str, Any]:
    """Sizes of a set, accuracy of every method, paired differences; by the number of shots."""
    reached = study.reachable(problem.train[1], shots)
    methods = EstimatorMethods(problem, OPTIONS, METHODS)
    right = study.run_episodes(problem, methods, shots=reached, seeds=seeds, progress=progress)
    sizes = problem.train[1].bincount()
    parts = {"train": problem.train, "validation": problem.val, "test": problem.test}
    accuracy = {
        method: {
            str(k): _accuracy(row) for k, row in zip(reached, hits.double().mean(dim=2).tolist(), strict=True)
        }
        for method, hits in right.items()
    }
    differences = {
        f"{ours} - {other}": {
            str(k): study.compare(right[ours][i], right[other][i])._asdict() for i, k in enumerate(reached)
        }
        for ours, other in COMPARISONS
    }
    return {
        "classes": int(problem.train[1].max()) + 1,
        **{f"{name}_images": 0 if part is None else len(part[1]) for name, part in parts.items()},
        "shots": reached,
        "short_classes": {str(k): int((sizes < k).sum()) for k in reached},
        "accuracy": accuracy,
        "differences": differences,
    }


def mean_figures(sets: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The same over sets; a set whose classes end sooner stands with the most shots it has."""
    shots = sorted({k for figures in sets for k in figures["shots"]})

    def cells(kind: str, name: str, k: int) -> list[dict[str, Any]]:
        return [f[kind][name][str(max(x for x in f["shots"] if x <= k))] for f in sets]

    def accuracy(method: str, k: int) -> dict[str, Any]:
        values = torch.tensor([c["values"] for c in cells("accuracy", method, k)], dtype=torch.float64)
        return _accuracy(values.mean(dim=0).tolist())

    def difference(pair: str, k: int) -> dict[str, Any]:
        found = [study.Difference(**c) for c in cells("differences", pair, k)]
        return study.averaged(found)._asdict()

    return {
        "shots": shots,
        "accuracy": {m: {str(k): accuracy(m, k) for k in shots} for m in METHODS},
        "differences": {
            f"{a} - {b}": {str(k): difference(f"{a} - {b}", k) for k in shots} for a, b in COMPARISONS
        },
    }


def _accuracy(values: list[float]) -> dict[str, Any]:  # one a seed
    row: Tensor = torch.tensor(values, dtype=torch.float64)
    std = float(row.std()) if len(row) > 1 else 0.0
    return {"mean": float(row.mean()), "std": std, "values": values}

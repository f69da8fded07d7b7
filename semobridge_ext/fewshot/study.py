"""The few-shot study: methods on the same draws of shots, all scored on one fixed test part.

    rows of an episode = the first K rows per class of the training part, in an order by seed
    outcome            = which test rows a method classifies correctly, and the seconds it took

The parts are fixed. Shots come from the training part, tuning sees the validation part, and nothing
sees the test part before it is scored. What is compared is a set of methods: `study_estimators` holds
those of ``semobridge-ext fewshot`` and ``demo``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from semobridge_ext.fewshot.draws import sample_support

# Two-sided 5 % of Student's t with five seeds is 2.8 standard errors.
NOISE_ERRORS = 3.0

Part = tuple[Tensor, Tensor]  # raw features [N, D], labels [N] int64 from 0
Progress = Callable[[Iterable[Any], int], Iterable[Any]]


class Problem(NamedTuple):
    """One set in raw (not normalised) features of a CLIP model."""

    name: str
    train: Part
    val: Part | None
    test: Part
    text: Tensor | None = None  # [C, D] class text features
    hidden: Tensor | None = None  # [C, T] the same before the projection
    text_projection: Tensor | None = None  # [T, D]; None: nothing to bridge with
    text_length: float = 1.0
    before: tuple[Tensor, Tensor, Tensor] | None = None  # [N, V] rows of the parts before the projection
    image_projection: Tensor | None = None  # [V, D]


def facts_of(problem: Problem) -> dict[str, Any]:
    """Everything that an outcome depends on beside the methods, by name."""
    parts = {"train": problem.train, "validation": problem.val, "test": problem.test}
    facts: dict[str, Any] = {}
    for part, value in parts.items():
        features, labels = (None, None) if value is None else value
        facts |= {f"{part} features": features, f"{part} labels": labels}
    names = ("text", "hidden", "text_projection", "text_length", "image_projection")
    before = None if problem.before is None else list(problem.before)
    return {**facts, **{name: getattr(problem, name) for name in names}, "features before": before}


class Outcome(NamedTuple):
    """What one method made of one episode."""

    right: Tensor  # [N] bool, by row of the test part
    seconds_fit: float = 0.0  # training included
    seconds_tune: float = 0.0

    @property
    def accuracy(self) -> float:
        return float(self.right.double().mean())


# From the training rows [M] of an episode and its seed to an outcome by method.
Methods = Callable[[Tensor, int], dict[str, Outcome]]


def reachable(labels: Tensor, shots: Sequence[int]) -> list[int]:  # labels [M]
    """Shot counts that at least half of the classes can fill; the others give what they have."""
    sizes = torch.bincount(labels, minlength=int(labels.max()) + 1)
    return [k for k in sorted(set(shots)) if k == 1 or float((sizes >= k).double().mean()) >= 0.5]


def run_episode(problem: Problem, methods: Methods, shots: int, seed: int) -> dict[str, Outcome]:
    """Every method on one draw of shots."""
    return methods(sample_support(problem.train[1], shots, seed), seed)


def run_episodes(
    problem: Problem,
    methods: Methods,
    *,
    shots: Sequence[int] = (1, 2, 4, 8),
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    progress: Progress | None = None,
) -> dict[str, Tensor]:  # method -> [shots, seeds, N] bool, prediction right
    """Every method on every draw of shots."""
    episodes: Iterable[tuple[int, int]] = [(k, seed) for k in shots for seed in seeds]
    if progress is not None:
        episodes = progress(episodes, len(shots) * len(seeds))
    found: dict[str, list[Tensor]] = {}
    for k, seed in episodes:
        for name, outcome in run_episode(problem, methods, k, seed).items():
            found.setdefault(name, []).append(outcome.right)
    return {name: torch.stack(right).unflatten(0, (len(shots), -1)) for name, right in found.items()}


# -- what a difference is worth ----------------------------------------------------------------------


class Difference(NamedTuple):
    """A paired difference of two accuracies, as fractions."""

    mean: float
    std: float  # over seeds
    error: float  # standard error of the mean, from the seeds and from the finite test part
    beyond_noise: bool


def compare(
    ours: Tensor,  # [seeds, N] bool
    other: Tensor,  # [seeds, N] bool
) -> Difference:
    """Paired difference of accuracy, ours − other, and the noise it stands against."""
    gain = ours.double() - other.double()
    seeds, images = gain.shape
    std, by_image = _spread(gain.mean(dim=1)), gain.mean(dim=0)
    # Shots and test rows are both samples; adding the two variances errs on the careful side.
    variance = std**2 / seeds + (float(by_image.var()) / images if images > 1 else 0.0)
    mean, error = float(gain.mean()), variance**0.5
    return Difference(mean, std, error, abs(mean) > NOISE_ERRORS * error)


def averaged(differences: Sequence[Difference]) -> Difference:
    """The mean over sets, whose draws of shots and test parts have nothing in common."""
    count = len(differences)
    mean = sum(d.mean for d in differences) / count
    std, error = (sum(d[i] ** 2 for d in differences) ** 0.5 / count for i in (1, 2))
    return Difference(mean, std, error, abs(mean) > NOISE_ERRORS * error)


def paired(ours: Sequence[float], other: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation over seeds of the difference of two methods' accuracies."""
    difference = torch.tensor(ours, dtype=torch.float64) - torch.tensor(other, dtype=torch.float64)
    return float(difference.mean()), _spread(difference)


def _spread(values: Tensor) -> float:  # [seeds]
    return float(values.std()) if len(values) > 1 else 0.0

"""Tuning of the blend's parameters on validation data (docs/methods.md §1: 1000 trials of TPE)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from semobridge_ext import _errors, _numbers
from semobridge_ext._ops.blend_logits.op import BlendOperand
from semobridge_ext._ops.blend_logits.spec import BlendParams
from semobridge_ext._ops.count_correct.op import CorrectCounter

RANGES = {
    "s": (0.0, 1.5),
    "alpha": (0.0, 10.0),
    "beta": (0.0, 10.0),
    "gamma": (0.0, 10.0),
    "lambda1": (0.0, 1.0),
    "lambda2": (0.0, 1.0),
    "lambda3": (0.0, 1.0),
}
# The weights' ratios without their redundant common factor: how much the shots weigh, and how much of
# that the bridged queries.
SHARES = {"shots": (0.0, 1.0), "queries": (0.0, 1.0)}
_LAMBDAS = ("lambda1", "lambda2", "lambda3")


class TuneResult(NamedTuple):
    """What tuning found; ``history`` has one (parameters, accuracy) per trial, in order."""

    best: BlendParams
    accuracy: float
    trial: int
    history: list[tuple[BlendParams, float]]


def _named(called: str, argument: str, given: Any) -> dict[str, Any]:
    """A dict by the blend's parameters; a copy."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise TypeError(
            _errors.message(called, argument, "be a dict by name", given, f"pass {argument}={{}}")
        )
    if unknown := sorted(map(str, set(given) - set(RANGES))):
        contract = f"name {', '.join(RANGES)}"
        raise ValueError(_errors.message(called, argument, contract, ", ".join(unknown), "rename it"))
    return dict(given)


def _bounds(called: str, name: str, given: Any) -> tuple[float, float]:
    contract = "hold pairs of finite numbers with 0 <= low <= high"
    remedy = f"the search takes {RANGES[name]} where none is given"
    listed = isinstance(given, (tuple, list, np.ndarray)) and len(given) == 2
    if not listed or not all(map(_numbers.is_real, given)):
        raise TypeError(_errors.message(called, "ranges", contract, f"{name}: {given!r}", remedy))
    low, high = map(float, given)
    if not (math.isfinite(low) and math.isfinite(high) and 0 <= low <= high):
        raise ValueError(_errors.message(called, "ranges", contract, f"{name}: {given!r}", remedy))
    return low, high


def _fixed(called: str, given: Any) -> dict[str, float]:
    found = _named(called, "fixed", given)
    for name, value in found.items():
        contract, got, remedy = "hold finite numbers", f"{name}: {value!r}", "leave it to the search"
        if not _numbers.is_real(value):
            raise TypeError(_errors.message(called, "fixed", contract, got, remedy))
        if not math.isfinite(value):
            raise ValueError(_errors.message(called, "fixed", contract, got, remedy))
    return {name: float(value) for name, value in found.items()}


def _space(
    ranges: dict[str, tuple[float, float]], fixed: dict[str, float], redundant: bool
) -> dict[str, tuple[float, float]]:
    space = {**RANGES, **ranges}
    explicit = redundant or any(n in fixed or n in ranges for n in _LAMBDAS)
    if not explicit:
        for name in _LAMBDAS:
            del space[name]
        space |= SHARES
    return {name: bounds for name, bounds in space.items() if name not in fixed}


def _params(values: dict[str, float], fixed: dict[str, float]) -> BlendParams:
    values = {**values, **fixed}
    if "shots" in values:
        shots, queries = values.pop("shots"), values.pop("queries")
        weights = (1 - shots, shots * (1 - queries), shots * queries)
        largest = max(weights)
        values |= {name: w / largest for name, w in zip(_LAMBDAS, weights, strict=True)}
    return BlendParams(**values)


class _Random:
    def __init__(self, space: dict[str, tuple[float, float]], seed: int) -> None:
        self._space, self._rng = space, np.random.RandomState(seed)

    def ask(self) -> tuple[Any, dict[str, float]]:
        return None, {n: float(self._rng.uniform(low, high)) for n, (low, high) in self._space.items()}

    def tell(self, trial: Any, value: float) -> None:
        pass


class _Optuna:
    def __init__(self, called: str, space: dict[str, tuple[float, float]], seed: int, sampler: Any) -> None:
        try:
            import optuna
        except ImportError as error:
            raise ImportError(
                f"{called}: optuna must be installed for sampler {sampler!r}, got none; "
                "pip install 'semobridge-ext[search]', or pass sampler='random'"
            ) from error
        if isinstance(sampler, str):
            sampler = optuna.samplers.TPESampler(seed=seed)
        verbosity = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            self._study = optuna.create_study(direction="maximize", sampler=sampler)
        finally:
            optuna.logging.set_verbosity(verbosity)
        self._space: dict[str, Any] = {
            n: optuna.distributions.FloatDistribution(low, high) for n, (low, high) in space.items()
        }

    def ask(self) -> tuple[Any, dict[str, float]]:
        trial = self._study.ask(self._space)
        return trial, trial.params

    def tell(self, trial: Any, value: float) -> None:
        self._study.tell(trial, value)


def tune_blend(
    operand: BlendOperand,
    x: Tensor,  # [N, D]
    labels: Tensor,  # [N] int64
    *,
    n_trials: int = 1000,
    seed: int = 0,
    sampler: Any = "optuna",
    ranges: dict[str, tuple[float, float]] | None = None,
    fixed: dict[str, float] | None = None,
    redundant: bool = False,
    batch: int = 1,
    progress: bool = False,
    called: str = "tune_blend",
) -> TuneResult:
    """Maximises validation accuracy over the blend's parameters; the first best trial is kept.

    Every trial's accuracy is exact: that of a float64 evaluation of the formula on the cosines
    (_ops/count_correct/op.py). Arguments as in ``SeMoBridgeClassifier.tune``; ``called`` begins the errors.

    Raises:
        ImportError: Optuna is asked for and missing. TypeError, ValueError: unknown names, bad bounds,
            numbers, seeds or counts.
    """
    for name, value in (("n_trials", n_trials), ("batch", batch)):
        if not _numbers.is_whole(value) or value < 1:
            contract = "be a whole number from 1 up"
            raise ValueError(_errors.message(called, name, contract, _errors.describe(value), "try 1000"))
    remedy = "0 is the default"
    _numbers.check_number(called, "seed", seed, least=0, most=2**32 - 1, whole=True, remedy=remedy)
    fixed = _fixed(called, fixed)
    given = _named(called, "ranges", ranges)
    space = _space({name: _bounds(called, name, pair) for name, pair in given.items()}, fixed, redundant)
    if isinstance(sampler, str) and sampler not in ("optuna", "random"):
        contract = "be 'optuna', 'random' or an Optuna sampler"
        raise ValueError(_errors.message(called, "sampler", contract, repr(sampler), "choose one of them"))
    if sampler is not None and not isinstance(sampler, str) and not hasattr(sampler, "sample_relative"):
        contract, got = "be 'optuna', 'random' or an Optuna sampler", _errors.describe(sampler)
        raise TypeError(_errors.message(called, "sampler", contract, got, "choose one of them"))
    source: Any = _Random(space, seed) if sampler == "random" else _Optuna(called, space, seed, sampler)
    objective = CorrectCounter(operand, x, labels, called=called)
    history: list[tuple[BlendParams, float]] = []
    best = -1
    with _bar(n_trials, progress) as bar:
        while len(history) < n_trials:
            asked = [source.ask() for _ in range(min(batch, n_trials - len(history)))]
            params = [_params(values, fixed) for _, values in asked]
            counts = objective.correct(params)
            for (trial, _), p, count in zip(asked, params, counts, strict=True):
                accuracy = count / len(x)
                source.tell(trial, accuracy)
                if best < 0 or accuracy > history[best][1]:
                    best = len(history)
                history.append((p, accuracy))
            bar.update(len(asked))
    return TuneResult(history[best][0], history[best][1], best, history)


def _bar(total: int, progress: bool) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, desc="tune", unit="trial", disable=not progress)


def fit_scale(logits: Tensor, labels: Tensor) -> float:  # [N, C] float64, [N]
    """The factor that minimises the mean negative log-likelihood of softmax(scale·logits)."""

    def loss(exponent: float) -> float:
        return float(torch.nn.functional.cross_entropy(math.exp(exponent) * logits, labels))

    low, high = math.log(1e-2), math.log(1e5)
    golden = (math.sqrt(5) - 1) / 2
    left, right = high - golden * (high - low), low + golden * (high - low)
    at_left, at_right = loss(left), loss(right)
    for _ in range(40):  # the loss is convex in the scale, hence unimodal in its logarithm
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - golden * (high - low)
            at_left = loss(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + golden * (high - low)
            at_right = loss(right)
    return math.exp((low + high) / 2)

"""The few-shot study: every method on the same draws of shots, tuned on validation, scored on test.

The parts are fixed: shots come from the training part, ``tune`` and best-on-validation see the
validation part, and nothing sees the test part before it is scored.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from semobridge_ext.bridging import Bridge
from semobridge_ext.fewshot import (
    APE,
    LDA,
    NearestClassMean,
    SeMoBridgeClassifier,
    SeMoBridgeT,
    TipAdapter,
    TipAdapterF,
    ZeroShot,
)
from semobridge_ext.fewshot.episodes import sample_support


class StudyProblem(NamedTuple):
    """One set in raw features."""

    name: str
    train: tuple[Tensor, Tensor]  # [S, D], [S] int64
    val: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    text: Tensor | None  # [C, D] t
    hidden: Tensor | None  # [C, T] s
    text_projection: Tensor | None  # [T, D]; None: nothing to bridge with
    text_length: float = 1.0


class Options(NamedTuple):
    """How much work an episode is."""

    trials: int = 1000
    sampler: str = "random"
    preset: str = "paper"
    steps: int | None = None


class Outcome(NamedTuple):
    accuracy: float
    seconds_fit: float  # training included
    seconds_tune: float


# In the order of the tables. A method's second word says what it answers.
METHODS = {
    "zero-shot": "text alone",
    "nearest class mean": "raw prototypes alone",
    "LDA": "raw features, shrunk covariance; ρ tuned",
    "Tip-Adapter": "α, β tuned",
    "Tip-Adapter-F": "keys trained; α, β tuned",
    "APE": "α, β tuned",
    "blend without bridge": "control: SeMoBridge with the identity for a bridge, tuned",
    "SeMoBridge, no blend": "bridged prototypes alone (z2)",
    "SeMoBridge, untuned": "closed form, equal weights",
    "SeMoBridge": "closed form, blend tuned",
    "SeMoBridge-T, no blend": "trained, z2 alone",
    "SeMoBridge-T, no text losses": "trained without CE_txtp and CE_txte, tuned",
    "SeMoBridge-T, no bias": "trained without τ, tuned",
    "SeMoBridge-T": "trained, blend tuned",
}
NEEDS_TEXT = {"zero-shot", "Tip-Adapter", "Tip-Adapter-F", "APE"}
_ALONE: dict[str, Any] = {"lambda1": 0.0, "lambda2": 1.0, "lambda3": 0.0}


def _trained(problem: StudyProblem, bridge: Bridge, options: Options, **changes: Any) -> SeMoBridgeT:
    losses = {} if problem.hidden is not None else {"text_embedded": 0.0}
    if problem.text is None:
        losses["text_projected"] = 0.0
    losses |= changes.pop("losses", {})
    return SeMoBridgeT(
        bridge,
        problem.text,
        problem.hidden,
        losses=losses,
        preset=options.preset,
        steps=options.steps,
        **changes,
    )


def make_method(name: str, problem: StudyProblem, bridge: Bridge | None, options: Options) -> Any:
    """The unfitted estimator of a row of the table; None where the problem lacks what it needs."""
    text = problem.text
    if (name in NEEDS_TEXT and text is None) or ("SeMoBridge" in name and bridge is None):
        return None
    if name.startswith("SeMoBridge-T"):
        assert bridge is not None
        if name.endswith("no text losses"):
            none = {"text_projected": 0.0, "text_embedded": 0.0}
            return _trained(problem, bridge, options, losses=none)
        return _trained(problem, bridge, options, class_bias=not name.endswith("no bias"))
    table: dict[str, Callable[[], Any]] = {
        "zero-shot": lambda: ZeroShot(text),
        "nearest class mean": NearestClassMean,
        "LDA": LDA,
        "Tip-Adapter": lambda: TipAdapter(text),
        "Tip-Adapter-F": lambda: TipAdapterF(text),
        "APE": lambda: APE(text),
        "blend without bridge": lambda: SeMoBridgeClassifier("identity", text),
        "SeMoBridge, no blend": lambda: SeMoBridgeClassifier(bridge, text, **_ALONE),
        "SeMoBridge, untuned": lambda: SeMoBridgeClassifier(bridge, text),
        "SeMoBridge": lambda: SeMoBridgeClassifier(bridge, text),
    }
    return table[name]()


_UNTUNED = {"zero-shot", "nearest class mean", "SeMoBridge, no blend", "SeMoBridge, untuned"}


def run_episode(
    problem: StudyProblem,
    shots: int,
    seed: int,
    options: Options,
    methods: Sequence[str] = tuple(METHODS),
) -> dict[str, Outcome]:
    """Every method on one draw of shots; a method that the problem cannot serve is left out."""
    rows = sample_support(problem.train[1], shots, seed)
    x, y = problem.train[0][rows], problem.train[1][rows]
    bridge = None
    if problem.text_projection is not None:
        bridge = Bridge(problem.text_projection, text_length=problem.text_length)
    outcomes: dict[str, Outcome] = {}
    fitted: dict[str, Any] = {}
    for name in methods:
        if name == "SeMoBridge-T, no blend":
            continue  # the same training as SeMoBridge-T: scored with it
        clf = make_method(name, problem, bridge, options)
        if clf is None:
            continue
        began = time.perf_counter()
        if isinstance(clf, SeMoBridgeT):
            clf.fit(x, y, validation=problem.val)
        else:
            clf.fit(x, y)
        trained = time.perf_counter()
        if name == "SeMoBridge-T" and "SeMoBridge-T, no blend" in methods:
            blend, clf.params_ = clf.params_, clf.params_._replace(**_ALONE)
            accuracy = clf.score(*problem.test)
            outcomes["SeMoBridge-T, no blend"] = Outcome(accuracy, trained - began, 0.0)
            clf.params_ = blend
        tuning = time.perf_counter()
        if name not in _UNTUNED:
            batch = options.trials if options.sampler == "random" else 1
            clf.tune(*problem.val, n_trials=options.trials, seed=seed, sampler=options.sampler, batch=batch)
        tuned = time.perf_counter()
        fitted[name] = clf
        outcomes[name] = Outcome(clf.score(*problem.test), trained - began, tuned - tuning)
    return {name: outcomes[name] for name in METHODS if name in outcomes}


def paired(ours: Sequence[float], other: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation over seeds of the difference of two methods on the same draws."""
    difference = torch.tensor(ours, dtype=torch.float64) - torch.tensor(other, dtype=torch.float64)
    std = float(difference.std()) if len(difference) > 1 else 0.0
    return float(difference.mean()), std

"""Methods that are estimators, fitted and tuned: those of ``semobridge-ext fewshot``."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from semobridge_ext.bridging import Bridge
from semobridge_ext.fewshot.ape import APE
from semobridge_ext.fewshot.baselines import LDA, NearestClassMean, ZeroShot
from semobridge_ext.fewshot.caches import TipAdapter, TipAdapterF
from semobridge_ext.fewshot.classifier import SeMoBridgeClassifier
from semobridge_ext.fewshot.gda import GDA
from semobridge_ext.fewshot.linear_probe import LPPlusPlus
from semobridge_ext.fewshot.proker import ProKeR
from semobridge_ext.fewshot.prolip import ProLIP
from semobridge_ext.fewshot.study import Outcome, Part, Problem
from semobridge_ext.fewshot.training import SeMoBridgeT

# In the order of the tables. A method's second word says what it answers.
METHODS = {
    "zero-shot": "text alone",
    "nearest class mean": "raw prototypes alone",
    "LDA": "raw features, shrunk covariance; ρ tuned",
    "Tip-Adapter": "α, β tuned",
    "Tip-Adapter-F": "keys trained; α, β tuned",
    "APE": "α, β tuned",
    "GDA": "Gaussians with one covariance beside the text; α tuned",
    "ProKeR": "kernel ridge regression of the text's error; β, λ tuned",
    "LP++": "linear probe with a text weight per class, trained; the validation part chooses the step",
    "ProLIP": "vision projection trained; rate, λ tuned",
    "blend without bridge": "control: SeMoBridge with the identity for a bridge, tuned",
    "SeMoBridge, no blend": "bridged prototypes alone (z2)",
    "SeMoBridge, untuned": "closed form, equal weights",
    "SeMoBridge": "closed form, blend tuned",
    "SeMoBridge-T, no blend": "trained, z2 alone",
    "SeMoBridge-T, no text losses": "trained without CE_txtp and CE_txte, tuned",
    "SeMoBridge-T, no bias": "trained without τ, tuned",
    "SeMoBridge-T": "trained, blend tuned",
}
# What a study runs unless it is told: LP++ and ProLIP gain little over the blend without bridge.
DEFAULT = tuple(name for name in METHODS if name not in ("LP++", "ProLIP"))
NEEDS_TEXT = {"zero-shot", "Tip-Adapter", "Tip-Adapter-F", "APE", "GDA", "ProKeR", "LP++", "ProLIP"}
_ALONE: dict[str, Any] = {"lambda1": 0.0, "lambda2": 1.0, "lambda3": 0.0}
_UNTUNED = {"zero-shot", "nearest class mean", "LP++", "SeMoBridge, no blend", "SeMoBridge, untuned"}
_SHORT = 300  # steps of the small trainings


class Options(NamedTuple):
    """How much work an episode is."""

    trials: int = 1000
    sampler: str = "random"
    preset: str = "paper"
    steps: int | None = None


def _trained(problem: Problem, bridge: Bridge, options: Options, **changes: Any) -> SeMoBridgeT:
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


def make_method(name: str, problem: Problem, bridge: Bridge | None, options: Options) -> Any:
    """The unfitted estimator of a row of the table; None where the problem lacks what it needs."""
    text = problem.text
    if (name in NEEDS_TEXT and text is None) or ("SeMoBridge" in name and bridge is None):
        return None
    if name == "ProLIP" and (problem.before is None or problem.image_projection is None):
        return None
    short = _SHORT if options.steps is None else min(_SHORT, options.steps)
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
        "GDA": lambda: GDA(text),
        "ProKeR": lambda: ProKeR(text),
        "LP++": lambda: LPPlusPlus(text, steps=short),
        "ProLIP": lambda: ProLIP(problem.image_projection, text, steps=short),
        "blend without bridge": lambda: SeMoBridgeClassifier("identity", text),
        "SeMoBridge, no blend": lambda: SeMoBridgeClassifier(bridge, text, **_ALONE),
        "SeMoBridge, untuned": lambda: SeMoBridgeClassifier(bridge, text),
        "SeMoBridge": lambda: SeMoBridgeClassifier(bridge, text),
    }
    return table[name]()


class EstimatorMethods:
    """``METHODS`` for one problem, each fitted anew on every draw of shots.

    Args:
        problem: with a validation part, which tuning and training look at.
        options: how much work an episode is.
        names: the methods to run; those that the problem cannot serve are left out.
        tuning: by name, what ``tune`` is given beside the options.
    """

    def __init__(
        self,
        problem: Problem,
        options: Options,
        names: Sequence[str] = tuple(METHODS),
        tuning: Mapping[str, dict[str, Any]] | None = None,
    ) -> None:
        self.problem, self.options, self.names, self.tuning = problem, options, names, tuning or {}

    def __call__(self, rows: Tensor, seed: int) -> dict[str, Outcome]:
        """Outcomes of one draw of training rows [M], in the order of the tables."""
        problem = self.problem
        bridge = None
        if problem.text_projection is not None:
            bridge = Bridge(problem.text_projection, text_length=problem.text_length)
        outcomes: dict[str, Outcome] = {}
        for name in self.names:
            if name == "SeMoBridge-T, no blend":
                continue  # the same training as SeMoBridge-T: scored with it
            clf = make_method(name, problem, bridge, self.options)
            if clf is not None:
                outcomes |= self._run(name, clf, rows, seed)
        return {name: outcomes[name] for name in METHODS if name in outcomes}

    def _parts(self, clf: Any) -> tuple[Part, Part, Part]:
        """Training, validation and test part, with the features that the estimator takes."""
        problem = self.problem
        assert problem.val is not None
        parts = problem.train, problem.val, problem.test
        if not isinstance(clf, ProLIP):
            return parts
        assert problem.before is not None
        train, val, test = ((x, y) for x, (_, y) in zip(problem.before, parts, strict=True))
        return train, val, test

    def _run(self, name: str, clf: Any, rows: Tensor, seed: int) -> dict[str, Outcome]:
        """Fit, tune and score one estimator on a draw of training rows [M]."""
        options = self.options
        train, validation, test = self._parts(clf)
        x, y = train[0][rows], train[1][rows]
        outcomes: dict[str, Outcome] = {}
        began = time.perf_counter()
        if isinstance(clf, (SeMoBridgeT, LPPlusPlus)):
            clf.fit(x, y, validation=validation)
        else:
            clf.fit(x, y)
        fit_seconds = time.perf_counter() - began
        if name == "SeMoBridge-T" and "SeMoBridge-T, no blend" in self.names:
            blend, clf.params_ = clf.params_, clf.params_._replace(**_ALONE)
            outcomes["SeMoBridge-T, no blend"] = Outcome(clf._right("score", *test), fit_seconds)
            clf.params_ = blend
        began = time.perf_counter()
        if name not in _UNTUNED:
            batch = options.trials if options.sampler == "random" else 1
            given = {"n_trials": options.trials, "seed": seed, "sampler": options.sampler, "batch": batch}
            clf.tune(*validation, **given, **self.tuning.get(name, {}))
        tune_seconds = time.perf_counter() - began
        outcomes[name] = Outcome(clf._right("score", *test), fit_seconds, tune_seconds)
        return outcomes

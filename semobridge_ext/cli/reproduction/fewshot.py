"""The few-shot protocols: SeMoBridge, Tip-Adapter, GDA."""

from __future__ import annotations

from typing import Any

from semobridge_ext.cli.named.problem import Prepared
from semobridge_ext.cli.reproduction.published import ACCURACY
from semobridge_ext.fewshot.draws import sample_support
from semobridge_ext.fewshot.study import Problem
from semobridge_ext.fewshot.study_estimators import EstimatorMethods, Options

# The published ones and the plain baselines.
METHODS = {
    "semobridge": (
        "zero-shot", "nearest class mean", "LDA", "Tip-Adapter", "APE", "SeMoBridge", "SeMoBridge-T",
    ),
    "tip-adapter": ("zero-shot", "nearest class mean", "LDA", "Tip-Adapter", "Tip-Adapter-F"),
    "gda": ("zero-shot", "nearest class mean", "LDA", "GDA"),
}  # fmt: skip
HELD = 4  # validation images a class at most


def held(problem: Problem, shots: int, seed: int) -> Problem:
    """The problem with min(K, 4) validation images a class, drawn by the seed of the shots."""
    assert problem.val is not None
    rows = sample_support(problem.val[1], min(shots, HELD), seed)
    val = problem.val[0][rows], problem.val[1][rows]
    before = problem.before
    return problem._replace(
        val=val, before=None if before is None else (before[0], before[1][rows], before[2])
    )


def episode(
    protocol: str, prepared: Prepared, options: Options, shots: int, seed: int
) -> list[dict[str, Any]]:
    """The records of one draw of shots: fitted on them, tuned on validation images, tested once."""
    problem = held(prepared.problem, shots, seed)
    tuning: dict[str, dict[str, Any]] = {}
    if protocol == "tip-adapter" and prepared.published:
        tuning = {name: {"grid": prepared.published} for name in ("Tip-Adapter", "Tip-Adapter-F")}
    methods = EstimatorMethods(problem, options, METHODS[protocol], tuning)
    outcomes = methods(sample_support(problem.train[1], shots, seed), seed)
    return [
        {"set": problem.name, "method": name, "shots": shots, "seed": seed, ACCURACY: outcome.accuracy}
        for name, outcome in outcomes.items()
    ]

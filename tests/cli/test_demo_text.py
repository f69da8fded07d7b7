"""The demo's sentences follow the figures, whichever way they fall."""

from __future__ import annotations

import pytest

from semobridge_ext.cli import demo_fewshot, demo_retrieval, demo_text


def row(mean: float, beyond: bool) -> dict:
    return {"mean": mean, "std": 0.01, "error": 0.01, "beyond_noise": beyond}


def crafted(best: float = 0.4, **differences) -> dict:
    accuracy = {m: {"1": {"mean": 0.3, "std": 0.0}} for m in demo_fewshot.METHODS}
    accuracy["GDA"]["1"]["mean"] = best
    rows = {f"{a} - {b}": {"1": row(0.0, False)} for a, b in demo_fewshot.COMPARISONS}
    for pair, value in differences.items():
        rows[pair.replace("__", " - ").replace("zero_shot", "zero-shot")] = {"1": value}
    return {"shots": [1], "accuracy": accuracy, "differences": rows}


def searched(chosen: str, **changes) -> dict:
    found = [{"method": demo_retrieval.NATIVE, "mAP": 0.5, "difference": row(0.0, False)}]
    found += [
        {"method": name.replace("_", " "), "mAP": 0.5 + d["mean"], "difference": d}
        for name, d in changes.items()
    ]
    return {"things": {"chosen": chosen, "rows": found}}


def test_gains_are_said():
    mean = crafted(GDA__zero_shot=row(0.1, True))
    found = demo_text.helped(mean, "icons", searched("LDA map", LDA_map=row(0.2, True)))
    assert found == (
        "What helped: with 1 shot a class GDA gets 40.0 % where zero-shot gets 30.0 % (icons); the map that "
        "held-out classes chose lifts retrieval of unseen classes (LDA map 50.0 to 70.0 mAP on things)."
    )


def test_nothing_that_helped_is_said():
    found = demo_text.helped(crafted(), "icons", searched("LDA map", LDA_map=row(0.2, False)))
    assert found == (
        "What helped: no few-shot method is above zero-shot's 30.0 % beyond noise; with 1 shot a class the "
        "best, GDA gets 40.0 % (icons); in retrieval no map that held-out classes chose gains beyond noise."
    )


def test_losses_and_ties_are_said():
    mean = crafted(LDA__zero_shot=row(-0.1, True), GDA__zero_shot=row(0.1, True))
    words = demo_text.did_not_help(mean, searched("x", bridge=row(0.001, False), whitening=row(-0.1, True)))
    ties, losses = words.split("a loss beyond noise for ")
    assert "SeMoBridge against the same blend without the bridge (+0.0 points)" in ties
    assert "bridge in retrieval (+0.1 mAP)" in ties and "GDA" not in words
    assert losses == "LDA against zero-shot (-10.0 points) and whitening in retrieval (-10.0 mAP)."


def test_the_bridge_gets_the_credit_where_it_earns_it():
    gains = {f"{a} - {b}": row(0.02, True) for a, b in demo_fewshot.COMPARISONS}
    mean = crafted()
    mean["differences"] = {pair: {"1": value} for pair, value in gains.items()}
    words = demo_text.did_not_help(mean, searched("bridge", bridge=row(0.1, True)))
    assert words == "What did not help: nothing; everything that was tried gains beyond noise."


@pytest.mark.parametrize(
    ("ratio", "words"), [(4.0, "bridge: 4.0 ×"), (31.4, "31 ×"), (1.02, "as fast"), (0.5, "2.0 times slower")]
)
def test_speed_is_said_either_way(ratio, words):
    found = demo_text.how_fast([{"what": "bridge", "ratio": ratio, "error": 2e-7}])
    assert words in found and found.endswith("the largest error is 2e-07.")

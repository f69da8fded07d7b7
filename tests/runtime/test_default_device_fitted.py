"""What is fitted, and what measures it, under a default device that the inputs are not on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import semobridge_ext as sb
from tests.support.default_device import (
    CONCEPTS,
    IDENTITY,
    LABELS,
    NAMES,
    OTHER,
    TEXT,
    TWO,
    WORDS,
    C,
    D,
    X,
    check_door,
    stored,
)

# Each takes the embedded CLIP, its transform and tokenizer, and a folder.


def _few_shot(clip: Any, home: Path) -> Any:
    """Beyond test_plain_modes.py: names that are not sorted, files, and what is added later."""
    back = [*reversed(NAMES), "tree"]
    clf = sb.SeMoBridgeClassifier(sb.Bridge(IDENTITY), TEXT, class_names=back[:C]).fit(X, WORDS)
    again = stored(clf, home)
    again.add_shots(OTHER, WORDS).add_classes(["tree"], TEXT[:1], X[:2], ["tree"] * 2)
    cache = stored(sb.TipAdapter(TEXT, class_names=back[:C]).fit(X, WORDS), home)
    return clf.similarities(OTHER), clf.predict_proba(OTHER), again.logits(OTHER), cache.logits(OTHER)


def _coop(clip: Any, home: Path) -> Any:
    given = {"n_ctx": 2, "epochs": 1, "batch_size": 8}
    learner = sb.CoOp(clip[0], NAMES, **given).fit(X, WORDS)
    path = home / "coop.safetensors"
    learner.save(path)
    again = sb.CoOp.load(path, clip[0])
    (drawn_anew,) = sb.CoOp(clip[0], NAMES, **given).fit_seeds(X, WORDS, shots=1, seeds=[0])
    return (
        learner.logits(OTHER), learner.predict_proba(OTHER.numpy()), again.logits(OTHER),
        drawn_anew.logits(OTHER), learner.score(OTHER, WORDS), learner.features_for(["boat"]),
    )  # fmt: skip


def _kdpl(clip: Any, home: Path) -> Any:
    given = {"n_ctx": 2, "ctx_init": None, "epochs": 1, "batch_size": 8}
    learner = sb.KDPL(clip[0], TEXT, NAMES, **given).fit(X, OTHER)
    path = home / "kdpl.safetensors"
    learner.save(path)
    return (
        learner.logits(OTHER),
        sb.KDPL.load(path, clip[0]).predict_proba(OTHER),
        learner.features_for(["boat"]),
    )


def _re_tune(clip: Any, home: Path) -> Any:
    known = (LABELS[:, None] == TWO).long()
    prompts = TEXT.reshape(2, 2, D)
    model = sb.RETune(epochs=1).fit(X, known, prompts)
    model.partial_fit(X, 1 - known)
    again = stored(model, home).add_findings(prompts.flip(0), findings=["a", "b"])
    return (
        model.decision_function(OTHER), model.predict(OTHER), model.predict_proba(OTHER.numpy()),
        model.score(OTHER, known), again.decision_function(OTHER),
    )  # fmt: skip


def _discovery(clip: Any, home: Path) -> Any:
    y = [w if i % 2 and w in NAMES[:2] else None for i, w in enumerate(WORDS)]
    small = {"width": 8, "hidden": 8, "projection": 4, "epochs": 1, "batch_size": 8}
    gcd = sb.SpectralGCD(TEXT, num_classes=C, **small).fit(X, y, teacher=(X, TEXT))
    again = stored(gcd, home)
    found = gcd.logits(OTHER), gcd.predict_proba(OTHER.numpy()), again.logits(OTHER)
    pytest.importorskip("scipy")
    return *found, gcd.score(X, WORDS), gcd.losses_


def _filter(clip: Any, home: Path) -> Any:
    spectral = sb.SpectralFilter().fit(X, CONCEPTS)
    parts = sb.SpectralFilter().partial_fit(X, CONCEPTS).partial_fit(OTHER)
    names = [name for name in vars(spectral) if name.endswith("_") and not name.startswith("_")]
    return [getattr(one, name) for one in (spectral, parts, stored(spectral, home)) for name in sorted(names)]


def _inversions(clip: Any, home: Path) -> Any:
    model = clip[0]
    seed = torch.Generator().manual_seed(3)
    found = sb.oti(model, X[:3], steps=1, generator=seed), sb.ovi(model, X[:2], steps=1, generator=seed)
    given = {"pilots": 8, "steps": 1, "refine": (), "hidden": 4, "train_steps": 2}
    start = stored(sb.InversionMap.fit(model, X, generator=torch.Generator().manual_seed(3), **given), home)
    return [
        (one.tokens, one.features, one.losses) for one in (*found, sb.oti(model, X[:3], steps=1, init=start))
    ]


def _number_of_classes(clip: Any, home: Path) -> Any:
    pytest.importorskip("scipy")
    y = [w if i % 2 else None for i, w in enumerate(WORDS)]
    return sb.estimate_num_classes(X[:, :8], y, max_classes=6, draws=2)


def _diagnosis(clip: Any, home: Path) -> Any:
    found = sb.diagnose(
        X, WORDS, sb.LinearMap.pca(X, 3), other=TEXT, other_mapping=sb.LinearMap.pca(X, 3), resamples=5
    )
    return found.before.values, found.after.values, found.difference


def _reports(clip: Any, home: Path) -> Any:
    pytest.importorskip("scipy")
    scores = X[:, :2].sigmoid()
    truth = (OTHER[:, :2] > 0).long()
    report = sb.incremental_report([truth, truth.tolist()], [[scores, None], [scores, scores.numpy()]])
    return report, str(report), tuple(sb.gcd_accuracy(LABELS, LABELS.flip(0), [0, 1]))


DOORS: dict[str, Callable[[Any, Path], Any]] = {
    "few-shot": _few_shot, "CoOp": _coop, "KDPL": _kdpl, "RETune": _re_tune, "SpectralGCD": _discovery,
    "SpectralFilter": _filter, "inversions": _inversions, "estimate_num_classes": _number_of_classes,
    "diagnose": _diagnosis, "reports": _reports,
}  # fmt: skip
EAGER = {"SpectralFilter"}
CASES = [(name, "auto") for name in DOORS] + [(name, "eager") for name in DOORS if name in EAGER]


@pytest.fixture(scope="module")
def clip() -> Any:
    return sb.load_picto_clip()


@pytest.mark.parametrize(("name", "backend"), CASES)
def test_a_default_device_takes_nothing(clip: Any, name: str, backend: str, tmp_path: Path) -> None:
    check_door(DOORS[name], clip, backend, tmp_path)

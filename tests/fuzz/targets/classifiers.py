"""Few-shot classifiers, fitted, and the checkpoints of those that train."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import semobridge_ext as sb
from tests.fuzz.runner import Target, loaded
from tests.fuzz.targets.common import LABELS, NAMES, P, half_way, rows, saved

S = "safetensors"
MADE: dict[str, Callable[[], Any]] = {
    "SeMoBridgeClassifier": lambda: sb.SeMoBridgeClassifier(P.bridge(), P.text, class_names=NAMES),
    "SeMoBridgeT": lambda: sb.SeMoBridgeT(P.bridge(), P.text, P.hidden, class_names=NAMES, steps=2),
    "TipAdapter": lambda: sb.TipAdapter(P.text, class_names=NAMES),
    "TipAdapterF": lambda: sb.TipAdapterF(P.text, class_names=NAMES, epochs=1),
    "APE": lambda: sb.APE(P.text, class_names=NAMES, channels=4),
    "GDA": lambda: sb.GDA(P.text, class_names=NAMES),
    "ProKeR": lambda: sb.ProKeR(P.text, class_names=NAMES),
    "LPPlusPlus": lambda: sb.LPPlusPlus(P.text, class_names=NAMES, steps=2),
    "ProLIP": lambda: sb.ProLIP(torch.eye(P.text.shape[1]), P.text, class_names=NAMES, steps=2),
    "APET": lambda: sb.APET(P.text, class_names=NAMES, channels=4, epochs=1),
    "ZeroShot": lambda: sb.ZeroShot(P.text, class_names=NAMES),
    "NearestClassMean": sb.NearestClassMean,
    "LDA": sb.LDA,
}


def fitted(kind: str) -> Callable[[], Any]:
    def made() -> Any:
        clf = MADE[kind]()
        return clf.fit() if kind == "ZeroShot" else clf.fit(P.shots, LABELS)

    return made


def use_estimator(kind: str) -> Callable[[Path], Sequence[Tensor]]:
    def use(path: Path) -> Sequence[Tensor]:
        clf = loaded(getattr(sb, kind).load(path))
        x, y = rows(clf.n_features_in_, 6), [clf.classes_[i % len(clf.classes_)] for i in range(6)]
        results = [clf.decision_function(x), clf.predict_proba(x), torch.as_tensor(clf.score(x, y))]
        assert len(clf.predict(x)) == 6 and repr(clf)
        clf.save(path)
        if kind.startswith("SeMoBridge"):
            clf.tune(x, y, n_trials=3, sampler="random")
            results.append(clf.add_shots(x, y).decision_function(x))
        elif kind in ("TipAdapter", "TipAdapterF", "APE", "APET", "GDA", "ProKeR"):
            results.append(clf.tune(x, y).decision_function(x))
        return results

    return use


# -- training ----------------------------------------------------------------------------------------


def train(path: Path) -> Sequence[Tensor]:
    clf = sb.SeMoBridgeT(P.bridge(), P.text, P.hidden, steps=4, warmup=1, eval_every=2, checkpoint_every=2)
    clf.fit(P.shots, P.labels, validation=(P.queries, P.targets), checkpoint=path)
    return [clf.losses_, clf.decision_function(rows(7))]


def make_checkpoint(folder: Path) -> Path:
    """The file after two of four steps."""
    from semobridge_ext.fewshot.training_checkpoint import Checkpoint

    path = folder / "run.safetensors"
    return half_way(Checkpoint, lambda: train(path), path)


def train_cache(kind: str) -> Callable[[Path], Sequence[Tensor]]:
    def train(path: Path) -> Sequence[Tensor]:
        clf = getattr(sb, kind)(P.text, epochs=2, batch_size=4).fit(P.shots, P.labels, checkpoint=path)
        return [clf.losses_, clf.decision_function(rows(7))]

    return train


def make_cache_checkpoint(kind: str) -> Callable[[Path], Path]:
    """The file after one of two epochs."""

    def made(folder: Path) -> Path:
        path = folder / "run.safetensors"
        train_cache(kind)(path)
        return path

    return made


TARGETS = [
    *(
        Target(f"{kind}.load", S, (f"{kind}.load",), saved(fitted(kind)), use_estimator(kind), sealed=True)
        for kind in MADE
    ),
    *(
        Target(
            f"{kind}.fit(checkpoint=)",
            S,
            (f"{kind}.fit",),
            make_cache_checkpoint(kind),
            train_cache(kind),
            0.5,
            sealed=True,
        )
        for kind in ("TipAdapterF", "APET")
    ),
    Target("SeMoBridgeT.fit(checkpoint=)", S, ("SeMoBridgeT.fit",), make_checkpoint, train, 0.5, sealed=True),
]

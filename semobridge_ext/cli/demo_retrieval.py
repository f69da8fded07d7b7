"""The demo's retrieval figures: image to image, on classes that no map has seen. Numbers, no printing.

The classes of a set are dealt into thirds. Maps are fitted to the first, the best of them is told by the
second, fitted again to both, and every drawing of the last is a query among the others of the last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from semobridge_ext.bridging import Bridge
from semobridge_ext.cli.embedded import Clip
from semobridge_ext.fewshot.study import NOISE_ERRORS, Problem
from semobridge_ext.inversion import InversionMap, oti
from semobridge_ext.linear_maps import IsoCLIP, LinearMap
from semobridge_ext.retrieval.metrics import retrieval_metrics

NATIVE, INVERSION = "native features", "OTI queries, learned start"
STEPS = 3  # of OTI, from what the map predicts
# A small map and few pilots: a second on two cores.
START = {"pilots": 60, "steps": 30, "refine": (10,), "hidden": 128, "train_steps": 200}
_SHARES = (0.1, 0.3, 1.0)  # shrinkage

Map = Callable[["Rows", Tensor], Tensor]  # rows of a set and which of them [n] -> [n, M] unit rows
Maker = Callable[["Rows", Tensor], Map | None]  # fitted to some rows; None where these are too few


class Rows(NamedTuple):
    """All drawings of a set."""

    features: Tensor  # [N, D] raw
    unit: Tensor  # [N, D]
    before: Tensor  # [N, V] before the projection
    labels: Tensor  # [N] int64
    third: Tensor  # [N] 0, 1 or 2, by class
    text: Tensor  # [C, D] unit rows

    def of(self, *thirds: int) -> Tensor:  # [n] int64
        return torch.isin(self.third, torch.tensor(thirds)).nonzero().flatten()


def rows_of(problem: Problem) -> Rows:
    assert problem.val is not None and problem.before is not None and problem.text is not None
    parts = (problem.train, problem.val, problem.test)
    features, labels = (torch.cat([part[i] for part in parts]) for i in (0, 1))
    classes = len(problem.text)
    order = torch.randperm(classes, generator=torch.Generator().manual_seed(0))
    third = (order * 3 // classes)[labels]
    return Rows(features, normalize(features, dim=1), torch.cat(problem.before), labels, third, problem.text)


# -- maps ----------------------------------------------------------------------------------------------


def _linear(make: Callable[[Rows, Tensor], LinearMap | None]) -> Maker:
    def fitted(data: Rows, fit: Tensor) -> Map | None:
        linear = make(data, fit)
        return None if linear is None else lambda rows, chosen: linear(rows.unit[chosen])

    return fitted


def _pca(k: int) -> Maker:
    def make(data: Rows, fit: Tensor) -> LinearMap | None:
        texts = data.text[data.labels[fit].unique()]
        return LinearMap.pca(texts, k) if k < min(len(texts), texts.shape[1]) else None

    return _linear(make)


def _whitening(shrinkage: float) -> Maker:
    return _linear(lambda data, fit: LinearMap.whitening(data.unit[fit], shrinkage=shrinkage))


def _lda(shrinkage: float) -> Maker:
    """Whitened by the covariance within the classes, about the mean of all rows."""

    def make(data: Rows, fit: Tensor) -> LinearMap:
        x, y = data.unit[fit], data.labels[fit]
        sums = torch.zeros(len(data.text), x.shape[1]).index_add_(0, y, x)
        means = sums / y.bincount(minlength=len(sums)).clamp(min=1).unsqueeze(1)
        centred = LinearMap.centering(x.mean(dim=0)).with_norm(False)
        return LinearMap.compose(centred, LinearMap.whitening(x - means[y], shrinkage=shrinkage)).fold()

    return _linear(make)


def makers(clip: Clip) -> dict[str, dict[str, Maker]]:
    """Families of maps, and of each what is tried, by its setting."""
    bridge = LinearMap.from_bridge(Bridge.from_clip(clip.model))
    iso = IsoCLIP.from_clip(clip.model)

    def cuts(data: Rows, fit: Tensor) -> Map:
        iso.tune(data.before[fit], data.labels[fit])
        chosen = IsoCLIP.from_clip(clip.model, k_top=iso.k_top, k_bottom=iso.k_bottom)
        return lambda rows, part: chosen.image(rows.before[part])

    return {
        "bridge": {"": _linear(lambda *_: bridge)},
        "IsoCLIP": {"cuts tuned": cuts},
        "PCA on class names": {f"k = {k}": _pca(k) for k in (8, 16, 32, 64)},
        "whitening": {f"ρ = {s}": _whitening(s) for s in _SHARES},
        "LDA map": {f"ρ = {s}": _lda(s) for s in _SHARES},
    }


# -- figures -------------------------------------------------------------------------------------------


def _precision(query: Tensor, gallery: Tensor, labels: Tensor) -> Tensor:  # [n] float64, NaN: nothing to find
    found = retrieval_metrics(query, gallery, labels, labels, same_set=True, per_query=True)
    return found["per_query"]["AP"].double()


def _row(name: str, setting: str, values: Tensor, native: Tensor, labels: Tensor) -> dict[str, Any]:
    """mAP, and its paired difference to native with the standard error over whole classes."""
    valid = ~torch.isnan(native)
    change, owner = (values - native)[valid], labels[valid]
    mean = float(change.mean())
    by_class = torch.zeros(int(labels.max()) + 1, dtype=torch.float64).index_add_(0, owner, change - mean)
    error = float(by_class.square().sum().sqrt()) / len(change)
    difference = {"mean": mean, "error": error, "beyond_noise": abs(mean) > NOISE_ERRORS * error}
    return {
        "method": name, "setting": setting, "mAP": float(values[valid].mean()), "difference": difference,
    }  # fmt: skip


def set_figures(data: Rows, families: dict[str, dict[str, Maker]], start: InversionMap, clip: Clip) -> Any:
    """Every family's best map and the OTI queries, on the last third; which map the second third chose."""
    fit, judged, both, test = data.of(0), data.of(1), data.of(0, 1), data.of(2)
    labels = data.labels[test]

    def judge(made: Map | None) -> float:
        if made is None:
            return -1.0
        mapped = made(data, judged)
        return float(_precision(mapped, mapped, data.labels[judged]).nanmean())

    gallery = data.unit[test]
    native = _precision(gallery, gallery, labels)
    rows = [_row(NATIVE, "", native, native, labels)]
    best, chosen = (
        float(_precision(data.unit[judged], data.unit[judged], data.labels[judged]).nanmean()),
        NATIVE,
    )
    for name, members in families.items():
        scores = {setting: judge(make(data, fit)) for setting, make in members.items()}
        setting = max(scores, key=lambda s: scores[s])
        made = members[setting](data, both)
        if made is None:
            continue
        if scores[setting] > best:
            best, chosen = scores[setting], name
        mapped = made(data, test)
        rows.append(_row(name, setting, _precision(mapped, mapped, labels), native, labels))
    found = oti(clip.model, data.features[test], tokenizer=clip.tokenizer, init=start, steps=STEPS)
    values = _precision(found.features, gallery, labels)
    rows.append(_row(INVERSION, f"{STEPS} steps", values, native, labels))
    return {
        "queries": int((~torch.isnan(native)).sum()), "classes": len(labels.unique()), "chosen": chosen,
        "rows": rows,
    }  # fmt: skip


def figures(clip: Clip, problems: Sequence[Problem]) -> dict[str, Any]:
    """By set; one learned start serves all of them, from the features of classes that are not tested."""
    families = makers(clip)
    data = {problem.name: rows_of(problem) for problem in problems}
    seen = torch.cat([rows.features[rows.of(0, 1)] for rows in data.values()])
    generator = torch.Generator().manual_seed(0)
    start = InversionMap.fit(clip.model, seen, tokenizer=clip.tokenizer, generator=generator, **START)  # type: ignore[arg-type]
    return {name: set_figures(rows, families, start, clip) for name, rows in data.items()}

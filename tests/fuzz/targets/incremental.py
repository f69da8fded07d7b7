"""Findings in tasks: the estimator and the checkpoint of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import semobridge_ext as sb
from tests.fuzz.runner import Target, loaded
from tests.fuzz.targets.common import half_way, rows, saved
from tests.support import incremental

S = "safetensors"


def re_tuned(checkpoint: Path | None = None) -> Any:
    data = incremental.findings(dtype=torch.float32)
    changed = {"adaptor": "bottleneck", "width": 3, "epochs": 2, "checkpoint_every": 1}
    return incremental.fit(data, [0, 1], checkpoint=checkpoint, **changed)


def use_re_tune(path: Path) -> Sequence[Tensor]:
    found = loaded(sb.RETune.load(path))
    x, count = rows(found.n_features_in_, 6), len(found.findings_)
    assert found.predict(x).shape == (6, count) and repr(found)
    found.save(path)
    return [found.decision_function(x), found.predict_proba(x)]


def re_tune(path: Path) -> Sequence[Tensor]:
    found = re_tuned(path)
    return [found.losses_, found.decision_function(rows(8))]


def make_re_tune(folder: Path) -> Path:
    """The file after one of two epochs."""
    from semobridge_ext.incremental.training_checkpoint import Checkpoint

    path = folder / "run.safetensors"
    return half_way(Checkpoint, lambda: re_tune(path), path)


TARGETS = [
    Target("RETune.load", S, ("RETune.load",), saved(re_tuned), use_re_tune, sealed=True),
    Target("RETune.fit(checkpoint=)", S, ("RETune.fit",), make_re_tune, re_tune, 0.5, sealed=True),
]

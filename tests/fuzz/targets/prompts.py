"""Prompt learners and the checkpoints of their runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

import semobridge_ext as sb
from tests.fuzz.runner import Target, loaded
from tests.fuzz.targets.common import half_way, rows, saved
from tests.support import prompt_learning

S = "safetensors"


def use_prompts(cls: Any) -> Callable[[Path], Sequence[Tensor]]:
    def use(path: Path) -> Sequence[Tensor]:
        model, tokenizer, names = prompt_learning.authors()
        found = loaded(cls.load(path, model, tokenizer=tokenizer))
        found.save(path)
        assert repr(found) and found.n_features_in_ == 6
        shown = [] if found.class_specific else [found.features_for(names)]
        return [found.context_, *shown, *([found.logits(rows(6))] if hasattr(found, "classes_") else [])]

    return use


def learn_prompts(path: Path) -> Sequence[Tensor]:
    found = prompt_learning.small_coop(path)
    return [found.losses_, found.logits(rows(6))]


def distil_prompts(path: Path) -> Sequence[Tensor]:
    found = prompt_learning.small_kdpl(path)
    return [found.losses_, found.context_]


def make_prompts(run: Callable[[Path], Any]) -> Callable[[Path], Path]:
    """The file after one of two epochs."""

    def make(folder: Path) -> Path:
        from semobridge_ext.prompts.training import Checkpoint

        path = folder / "run.safetensors"
        return half_way(Checkpoint, lambda: run(path), path)

    return make


TARGETS = [
    Target(
        "CoOp.load", S, ("CoOp.load",), saved(prompt_learning.small_coop), use_prompts(sb.CoOp), sealed=True
    ),
    Target(
        "KDPL.load", S, ("KDPL.load",), saved(prompt_learning.small_kdpl), use_prompts(sb.KDPL), sealed=True
    ),
    Target(
        "CoOp.fit(checkpoint=)",
        S,
        ("CoOp.fit",),
        make_prompts(learn_prompts),
        learn_prompts,
        0.5,
        sealed=True,
    ),
    Target(
        "KDPL.fit(checkpoint=)",
        S,
        ("KDPL.fit",),
        make_prompts(distil_prompts),
        distil_prompts,
        0.5,
        sealed=True,
    ),
]

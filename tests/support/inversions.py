"""Inversions compared, and the arguments of one that goes to disk in chunks."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
import torch

import semobridge_ext as sb
from semobridge_ext.inversion import invert
from tests.support import towers
from tests.support.assertions import assert_figures, assert_row_relative
from tests.support.towers import F32, TEXT, TEXT_MODELS

STEPS, SAMPLES, SIZE = 40, 40, 4


def compare(ours: sb.Inversion, theirs: sb.Inversion, dtype: torch.dtype, context: str = "") -> None:
    def close(got: torch.Tensor, want: torch.Tensor, what: str) -> None:
        assert_row_relative(got, want.double(), "descent", dtype=dtype, context=f"{context} {what}")

    close(ours.tokens.flatten(1), theirs.tokens.flatten(1), "tokens")
    close(ours.features, theirs.features, "features")
    assert_figures(ours.losses, theirs.losses, "descent_loss", dtype=dtype, scale=1.0, context=context)
    assert ours.recorded.keys() == theirs.recorded.keys()
    for step, features in ours.recorded.items():
        close(features, theirs.recorded[step], f"step {step}")


def arguments(model: torch.nn.Module | None = None, **changed: object) -> tuple[tuple, dict]:
    options = {
        "init": towers.start(SAMPLES, 1, TEXT, F32), "steps": STEPS, "batch_size": SIZE, "record_steps": (5,),
    }  # fmt: skip
    f = changed.pop("features", towers.targets(SAMPLES, towers.D, F32))
    return (model or TEXT_MODELS["open_clip"](), f), {**options, **changed}


def interrupt_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C once a chunk has taken so many steps: a clock could be faster than a busy machine."""
    run_chunk, asked = invert.run_chunk, []

    def interrupted(*arguments: Any) -> Any:
        *given, advance = arguments
        samples, taken = len(given[1]), 0

        def advanced(sample_steps: int, losses: torch.Tensor) -> None:
            nonlocal taken
            advance(sample_steps, losses)
            taken += sample_steps // samples
            if taken >= steps and not asked:
                asked.append(taken)
                os.kill(os.getpid(), signal.SIGINT)

        return run_chunk(*given, advanced)

    monkeypatch.setattr(invert, "run_chunk", interrupted)

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
from tests.support.assertions import assert_row_relative
from tests.support.towers import DESCENT, F32, TEXT, TEXT_MODELS

STEPS, SAMPLES, SIZE = 40, 40, 4


def compare(ours: sb.Inversion, theirs: sb.Inversion, dtype: torch.dtype, context: str = "") -> None:
    bound = DESCENT[dtype]
    flat = [t.flatten(1) for t in (ours.tokens, theirs.tokens.double())]
    assert_row_relative(flat[0], flat[1], bound, f"{context} tokens")
    assert_row_relative(ours.features, theirs.features.double(), bound, f"{context} features")
    torch.testing.assert_close(ours.losses.double(), theirs.losses.double(), rtol=0, atol=bound)
    assert ours.recorded.keys() == theirs.recorded.keys()
    for step, features in ours.recorded.items():
        assert_row_relative(features, theirs.recorded[step].double(), bound, f"{context} step {step}")


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

"""What the arguments of SeMoBridgeT mean for a training: its schedule and the weights of its losses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from semobridge_ext import _numbers
from semobridge_ext._engines.bridge_training.spec import LossWeights
from semobridge_ext.fewshot.training_schedule import PRESETS, Schedule


def schedule_of(given: Mapping[str, Any]) -> Schedule:
    """The preset's, with what replaces it; `given` holds the constructor's arguments by name."""
    preset = given["preset"]
    if not isinstance(preset, str) or preset not in PRESETS:
        raise ValueError(f"SeMoBridgeT: preset must be one of {list(PRESETS)}, got {preset!r}; use 'paper'")
    for name in ("steps", "lr", "warmup", "patience"):
        if (value := given[name]) is not None:
            whole, remedy = name != "lr", "None takes the preset's" if name != "patience" else "None: never"
            least = 0 if name == "patience" else -math.inf
            _numbers.check_number("SeMoBridgeT.fit", name, value, whole=whole, least=least, remedy=remedy)
    replaced = {n: _numbers.python(given[n]) for n in ("steps", "lr", "warmup")}
    schedule = PRESETS[preset]._replace(**{n: value for n, value in replaced.items() if value is not None})
    if schedule.steps < 0 or schedule.lr <= 0 or schedule.warmup < 0:
        raise ValueError(
            f"SeMoBridgeT: steps and warmup must be ≥ 0 and lr > 0, got {schedule}; use the preset's"
        )
    return schedule


def loss_weights_of(given: Mapping[str, Any]) -> LossWeights:
    """The paper's, with the factors that replace them; the text that they need must be there."""
    losses = {} if given["losses"] is None else given["losses"]
    known = isinstance(losses, Mapping) and set(losses) <= set(LossWeights._fields)
    if not known or any(not _numbers.is_real(v) or not 0 <= v < float("inf") for v in losses.values()):
        raise ValueError(
            f"SeMoBridgeT: losses must map {list(LossWeights._fields)} to factors ≥ 0, got {losses}; "
            "0 leaves one out"
        )
    # NumPy's numbers compare to its own truth values, which do not add up.
    weights = LossWeights()._replace(**{name: float(value) for name, value in losses.items()})
    if not given["class_bias"]:
        weights = weights._replace(bias=0.0)
    for name, argument in (("text_projected", "text_features"), ("text_embedded", "text_hidden")):
        if getattr(weights, name) != 0 and given[argument] is None:
            raise ValueError(
                f"SeMoBridgeT: {argument} must be given for the loss {name!r}, got None; pass it (see "
                f"class_text_features, whose reason says why a model has none) or losses={{{name!r}: 0}}"
            )
    return weights

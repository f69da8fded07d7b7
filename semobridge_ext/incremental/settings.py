"""RETune's settings, checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from semobridge_ext import _errors, _numbers
from semobridge_ext._numbers import check_number
from semobridge_ext.incremental.adaptors import KINDS, Form

_WHOLE = {"width": 1, "epochs": 1, "seed": 0, "checkpoint_every": 1}  # least
_POSITIVE = ("residual", "logit_scale", "lr")
_DEFAULT = "set_params(...) takes another, and the default is one"


class Settings(NamedTuple):
    """What a task's training depends on besides its data and its start."""

    epochs: int
    batch_size: int | None
    lr: float
    weight_decay: float
    seed: int


def check_settings(where: str, given: Mapping[str, Any]) -> None:
    """Raises a TypeError or ValueError for the first of the constructor's arguments that is out of place."""
    if given["adaptor"] not in KINDS:
        remedy = "'linear' is the default"
        contract = f"be one of {', '.join(map(repr, KINDS))}"
        raise ValueError(_errors.message(where, "adaptor", contract, repr(given["adaptor"]), remedy))
    for name, least in _WHOLE.items():
        check_number(where, name, given[name], least=least, whole=True, remedy=_DEFAULT)
    for name in _POSITIVE:
        check_number(where, name, given[name], above=0, remedy=_DEFAULT)
    check_number(where, "weight_decay", given["weight_decay"], least=0, remedy="0 leaves it out")
    if given["batch_size"] is not None:
        remedy = "None takes all rows at once"
        check_number(where, "batch_size", given["batch_size"], least=1, whole=True, remedy=remedy)
    if not isinstance(given["progress"], bool):
        remedy = "False leaves it out"
        raise TypeError(_errors.message(where, "progress", "be True or False", given["progress"], remedy))


def form_of(given: Mapping[str, Any]) -> Form:
    """Numbers as floats, so that 1 and 1.0 are one form."""
    return Form(given["adaptor"], int(given["width"]), float(given["residual"]), float(given["logit_scale"]))


def settings_of(given: Mapping[str, Any]) -> Settings:
    batch = _numbers.python(given["batch_size"])
    epochs, seed = int(given["epochs"]), int(given["seed"])
    return Settings(epochs, batch, float(given["lr"]), float(given["weight_decay"]), seed)

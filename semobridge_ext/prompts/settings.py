"""Settings that every prompt learner shares, checked where ``fit`` begins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from semobridge_ext import _errors, _numbers
from semobridge_ext._numbers import check_number
from semobridge_ext.prompts.prompt_words import POSITIONS

_WHOLE = {"n_ctx": 1, "epochs": 1, "batch_size": 1, "seed": 0, "checkpoint_every": 1, "keep": 1}  # least
_DEFAULT = "set_params(...) takes another, and the default is one"


class Settings(NamedTuple):
    """What a training depends on besides the data."""

    n_ctx: int
    class_token_position: str
    class_specific: bool
    epochs: int
    lr: float
    first_lr: float
    momentum: float
    weight_decay: float
    batch_size: int
    seed: int


def check_settings(where: str, given: Mapping[str, Any]) -> None:
    """Raises a TypeError or ValueError for the first of the constructor's arguments that is out of place."""
    for name, least in _WHOLE.items():
        if name in given:
            check_number(where, name, given[name], least=least, whole=True, remedy=_DEFAULT)
    for name in ("lr", "first_lr"):
        check_number(where, name, given[name], above=0, remedy=_DEFAULT)
    check_number(where, "momentum", given["momentum"], least=0, most=1, remedy=_DEFAULT)
    check_number(where, "weight_decay", given["weight_decay"], least=0, remedy="0 leaves it out")
    if given["logit_scale"] is not None:
        check_number(where, "logit_scale", given["logit_scale"], above=0, remedy="None takes the model's own")
    if given["batch_rows"] is not None:
        remedy = "None fills a gigabyte"
        check_number(where, "batch_rows", given["batch_rows"], least=1, whole=True, remedy=remedy)
    if given["class_token_position"] not in POSITIONS:
        contract, got = f"be one of {POSITIONS}", given["class_token_position"]
        raise ValueError(_errors.message(where, "class_token_position", contract, got, "'end' is usual"))
    words = given["ctx_init"]
    if words is not None and (not isinstance(words, str) or not words.strip()):
        remedy = "None begins from random vectors"
        raise TypeError(_errors.message(where, "ctx_init", "be words", words, remedy))
    for name in ("class_specific", "progress"):
        if not isinstance(given.get(name, False), bool):
            raise TypeError(_errors.message(where, name, "be True or False", given[name], "pass one of them"))


def settings_of(given: Mapping[str, Any], n_ctx: int) -> Settings:
    """Numbers as floats, so that 1 and 1.0 are one setting to a checkpoint."""
    kept = {name: _numbers.python(given[name]) for name in Settings._fields if name in given}
    kept = {n: float(v) if type(v) is int and n not in _WHOLE else v for n, v in kept.items()}
    return Settings(**{"class_specific": False, **kept, "n_ctx": n_ctx})

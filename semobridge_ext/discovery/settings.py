"""SpectralGCD's settings: what a training depends on besides the data, checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from semobridge_ext import _errors, _numbers
from semobridge_ext._numbers import check_number
from semobridge_ext.discovery.losses import LossWeights
from semobridge_ext.discovery.network import Sizes
from semobridge_ext.discovery.training_data import Data

_WHOLE = {  # least
    "num_classes": 2, "width": 1, "hidden": 1, "projection": 1, "epochs": 1, "batch_size": 2, "warmup": 1,
    "seed": 0, "checkpoint_every": 1,
}  # fmt: skip
_POSITIVE = ("temperature", "lr", "first_temperature", "last_temperature")
_SHARES = ("supervised_weight", "momentum")
_WEIGHTS = ("entropy_weight", "forward_kl", "reverse_kl", "weight_decay", "adapter_lr")
_DEFAULT = "set_params(...) takes another, and the default is one"


class Settings(NamedTuple):
    sizes: Sizes
    weights: LossWeights
    adapter: bool
    temperature: float
    epochs: int
    batch_size: int
    lr: float
    adapter_lr: float
    momentum: float
    weight_decay: float
    first_temperature: float
    last_temperature: float
    warmup: int
    seed: int


def check_settings(where: str, given: Mapping[str, Any]) -> None:
    """Raises a TypeError or ValueError for the first of the constructor's arguments that is out of place."""
    for name, least in _WHOLE.items():
        remedy = "it counts old and new classes" if name == "num_classes" else _DEFAULT
        check_number(where, name, given[name], least=least, whole=True, remedy=remedy)
    for name in _POSITIVE:
        check_number(where, name, given[name], above=0, remedy=_DEFAULT)
    for name in _SHARES:
        check_number(where, name, given[name], least=0, most=1, remedy=_DEFAULT)
    for name in _WEIGHTS:
        check_number(where, name, given[name], least=0, remedy="0 leaves it out")
    for name in ("adapter", "progress"):
        if not isinstance(given[name], bool):
            remedy = "False leaves it out"
            raise TypeError(_errors.message(where, name, "be True or False", given[name], remedy))


def settings_of(given: Mapping[str, Any], data: Data) -> Settings:
    """Numbers as floats, so that 1 and 1.0 are one setting to a checkpoint."""
    width = data.width
    concepts = 0 if data.concepts is None else len(data.concepts)
    sizes = Sizes(
        width, concepts, given["width"] if concepts else width, given["hidden"], given["projection"],
        given["num_classes"],
    )  # fmt: skip
    names = ("supervised_weight", "entropy_weight", "forward_kl", "reverse_kl")
    weights = LossWeights(*(float(given[name]) for name in names))
    kept = {name: _numbers.python(given[name]) for name in Settings._fields if name in given}
    kept = {n: float(v) if type(v) is int and n not in _WHOLE else v for n, v in kept.items()}
    return Settings(sizes=sizes, weights=weights, **kept)

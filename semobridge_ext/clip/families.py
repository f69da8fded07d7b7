"""The families of CLIP models that are supported, and the function that finds a model's own."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

from torch import nn

from semobridge_ext import _errors
from semobridge_ext.clip.adapter import Adapter, UnknownModelError

# module.Class, the more particular family first; loaded when a model first needs them.
FAMILIES = (
    "siglip.Siglip",
    "hugging_face.HuggingFace",
    "openai.OpenAI",
    "open_clip.OpenClip",
)


@cache
def families() -> tuple[type[Adapter], ...]:
    found = []
    for family in FAMILIES:
        module, name = family.split(".")
        found.append(getattr(import_module(f"semobridge_ext.clip.{module}"), name))
    return tuple(found)


def adapter_of(function: str, model: Any) -> Adapter:
    """The adapter of a CLIP model, which refuses in the name of ``function``.

    Raises:
        TypeError: not a module, or a model of no supported family; the message names what was got and
            what is supported.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"{function}: model must be a CLIP model (torch.nn.Module), got {type(model).__name__}; "
            "open_clip.create_model_and_transforms returns it first"
        )
    for family in families():
        if family.recognises(model):
            return family(function, model)
    supported = "; ".join(family.supports for family in families())
    remedy = "pass such a model, or compute its features yourself"
    raise UnknownModelError(
        _errors.message(function, "model", f"be one of ({supported})", type(model).__name__, remedy)
    )

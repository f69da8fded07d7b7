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


# Models of Hugging Face with CLIP's names for their parts that compute something else, by `model_type`.
_OTHERS = {
    "owlvit": "a detector, whose image features belong to boxes",
    "owlv2": "a detector, whose image features belong to boxes",
}


@cache
def families() -> tuple[type[Adapter], ...]:
    found = []
    for family in FAMILIES:
        module, name = family.split(".")
        found.append(getattr(import_module(f"semobridge_ext.clip.{module}"), name))
    return tuple(found)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside nn.DataParallel, DistributedDataParallel, torch.compile and peft, which run it."""
    while True:
        inside = getattr(model, "_modules", {})
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        elif isinstance(inside.get("_orig_mod"), nn.Module):
            model = inside["_orig_mod"]
        elif hasattr(model, "peft_config") and hasattr(model, "get_base_model"):
            model = model.get_base_model()  # type: ignore[operator]
        else:
            return model


def adapter_of(function: str, model: Any) -> Adapter:
    """The adapter of a CLIP model, or of the one inside a wrapper; it refuses in the name of ``function``.

    Raises:
        TypeError: not a module, or a model of no supported family; the message names what was got and
            what is supported.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"{function}: model must be a CLIP model (torch.nn.Module), got {type(model).__name__}; "
            "open_clip.create_model_and_transforms returns it first"
        )
    model = unwrapped(model)
    first = next(model.parameters(), None)
    if first is not None and first.is_meta:
        remedy = "load the weights, or make it on a device that holds them"
        got = f"a {type(model).__name__} on meta"
        raise ValueError(_errors.message(function, "model", "hold its weights", got, remedy))
    other = _OTHERS.get(str(getattr(getattr(model, "config", None), "model_type", "")))
    for family in families():
        if other is None and family.recognises(model):
            return family(function, model)
    supported = "; ".join(family.supports for family in families())
    remedy = "pass such a model, or compute its features yourself"
    got = type(model).__name__ if other is None else f"{type(model).__name__}, {other}"
    raise UnknownModelError(_errors.message(function, "model", f"be one of ({supported})", got, remedy))

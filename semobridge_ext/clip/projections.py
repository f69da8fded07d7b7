"""The linear maps at the end of a CLIP model's towers."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def _matrix(owner: str, value: Any) -> Tensor:
    """A [T, D] matrix from a parameter, or from a Linear layer, whose weight is its transpose."""
    if isinstance(value, nn.Linear):
        if value.bias is not None:
            raise TypeError(
                f"text_projection: {owner} must be linear without bias, got a Linear layer with a bias; "
                "the pseudo-inverse of SeMoBridge has no place for it"
            )
        return value.weight.detach().T
    if isinstance(value, Tensor):
        return value.detach()
    raise TypeError(
        f"text_projection: {owner} must be a matrix or a Linear layer, got {type(value).__name__}; "
        "a tower that ends in a nonlinear head has no pseudo-inverse"
    )


def text_projection(model: Any) -> Tensor:
    """The text projection W of a CLIP model, oriented so that ``x_text · W`` is the text feature.

    Args:
        model: open_clip ``CLIP`` or ``CustomTextCLIP`` (parameter or Linear), OpenAI ``clip`` (float16
            on a GPU), Hugging Face ``CLIPModel``, or a Hugging Face text tower inside open_clip.

    Returns:
        [T, D], detached, in the model's dtype and on its device.

    Raises:
        TypeError: no such projection; the message names what was found.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            "text_projection: model must be a CLIP model (torch.nn.Module), got "
            f"{type(model).__name__}; open_clip.create_model_and_transforms returns it first"
        )
    kind = type(model).__name__
    for owner, tower in (("model", model), ("model.text", getattr(model, "text", None))):
        for name in ("text_projection", "proj"):
            if tower is None or (name == "proj" and owner == "model"):
                continue
            value = getattr(tower, name, None)
            if value is not None:
                return _matrix(f"{kind}'s {owner}.{name}", value)
    raise TypeError(
        f"text_projection: model must have a linear text projection, got {kind} without one; "
        "pass its matrix to Bridge(text_projection) if it has one under another name"
    )

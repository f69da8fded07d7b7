"""The linear maps at the end of a CLIP model's towers."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def _matrix(function: str, owner: str, value: Any, why: str) -> Tensor:
    """An [in, D] matrix from a parameter, or from a Linear layer, whose weight is its transpose."""
    if isinstance(value, nn.Linear):
        if value.bias is not None:
            raise TypeError(
                f"{function}: {owner} must be linear without bias, got a Linear layer with a bias; {why} has "
                "no place for it"
            )
        return value.weight.detach().T
    if isinstance(value, Tensor):
        return value.detach()
    raise TypeError(
        f"{function}: {owner} must be a matrix or a Linear layer, got {type(value).__name__}; "
        f"a tower that ends in a nonlinear head is outside of {why}"
    )


def _check_module(function: str, model: Any) -> str:
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"{function}: model must be a CLIP model (torch.nn.Module), got "
            f"{type(model).__name__}; open_clip.create_model_and_transforms returns it first"
        )
    return type(model).__name__


def text_projector(model: Any) -> tuple[str, Any]:
    """(name, parameter or layer) of the text projection; a value of None where there is none."""
    for owner, tower in (("model", model), ("model.text", getattr(model, "text", None))):
        for name in ("text_projection", "proj"):
            if tower is None or (name == "proj" and owner == "model"):
                continue
            value = getattr(tower, name, None)
            if value is not None:
                return f"{owner}.{name}", value
    return "", None


def image_projector(model: Any) -> tuple[str, Any]:
    """(name, parameter or layer) of the image projection; a value of None where there is none."""
    if hasattr(model, "visual_projection"):  # Hugging Face
        return "model.visual_projection", model.visual_projection
    visual: Any = getattr(model, "visual", None)
    if getattr(visual, "proj", None) is not None:
        return "model.visual.proj", visual.proj
    trunk = getattr(visual, "trunk", None)
    if trunk is None:
        return "", None
    layers = [("trunk.head", getattr(trunk, "head", None))]
    layers += [(f"head.{name}", layer) for name, layer in visual.head.named_children()]
    idle = (nn.Identity, nn.Dropout, type(None))
    layers = [(name, layer) for name, layer in layers if not isinstance(layer, idle)]
    if len(layers) > 1:  # pooling and projection, or two projections
        return "model.visual.head", visual.head
    return (f"model.visual.{layers[0][0]}", layers[0][1]) if layers else ("", None)


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
    kind = _check_module("text_projection", model)
    name, value = text_projector(model)
    if value is None:
        raise TypeError(
            f"text_projection: model must have a linear text projection, got {kind} without one; "
            "pass its matrix to Bridge(text_projection) if it has one under another name"
        )
    return _matrix("text_projection", f"{kind}'s {name}", value, "the algebra of SeMoBridge and IsoCLIP")


def image_projection(model: Any) -> Tensor:
    """The image projection A of a CLIP model, oriented so that ``x_image · A`` is the image feature.

    Args:
        model: open_clip model with a ``VisionTransformer`` or a timm trunk under a linear head, OpenAI
            ``clip`` with a ViT, Hugging Face ``CLIPModel``.

    Returns:
        [V, D], detached, in the model's dtype and on its device.

    Raises:
        TypeError: no such projection (SigLIP's pooling head, a ResNet); the message names what was found.
    """
    kind = _check_module("image_projection", model)
    name, value = image_projector(model)
    if value is None:
        visual = getattr(model, "visual", None)
        found = kind if visual is None else f"{kind} with a {type(visual).__name__}"
        raise TypeError(
            f"image_projection: model must have a linear image projection, got {found} without one "
            "(SigLIP's attention pooling and ResNets end in no matrix of their own); "
            "use a model with a linear projector, or pass the matrix if it has one under another name"
        )
    return _matrix("image_projection", f"{kind}'s {name}", value, "the algebra of IsoCLIP")

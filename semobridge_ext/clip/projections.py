"""The linear maps that end a CLIP model's towers."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from semobridge_ext.clip.adapter import Projector
from semobridge_ext.clip.families import adapter_of


def _matrix(function: str, kind: str, projector: Projector, why: str) -> Tensor:
    """An [in, D] matrix from a parameter, or from a Linear layer, whose weight is its transpose."""
    owner, value = f"{kind}'s {projector.name}", projector.value
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


def text_projection(model: Any) -> Tensor:  # [T, D]
    """The text projection W of a CLIP model, oriented so that ``x_text · W`` is the text feature.

    Args:
        model: a CLIP model of a family that ``semobridge_ext.clip`` lists; W may be a parameter (float16
            for OpenAI's clip on a GPU) or a Linear layer without bias.

    Returns:
        [T, D], detached, in the model's dtype and on its device.

    Raises:
        TypeError: not a CLIP model, or no such projection; the message names what was found. A layer
            with a bias (SigLIP) is refused: ``t = x·W + b`` cannot be undone from a feature whose
            length is lost.

    Numerics: the weights as they are stored; where a model keeps them transposed, so is the view.

    Memory: none of its own; the result is a view of the model's weights.

    Example:
        >>> import semobridge_ext as sb
        >>> sb.clip.text_projection(sb.load_picto_clip()[0]).shape
        torch.Size([192, 192])
    """
    adapter = adapter_of("text_projection", model)
    projector = adapter.text_projector()
    if projector is None:
        raise TypeError(
            f"text_projection: model must have a linear text projection, got {adapter.kind} without one; "
            "pass its matrix to Bridge(text_projection) if it has one under another name"
        )
    return _matrix("text_projection", adapter.kind, projector, "the algebra of SeMoBridge and IsoCLIP")


def image_projection(model: Any) -> Tensor:  # [V, D]
    """The image projection A of a CLIP model, oriented so that ``x_image · A`` is the image feature.

    Args:
        model: a CLIP model of a family that ``semobridge_ext.clip`` lists, with a vision transformer or a
            timm trunk under a linear head.

    Returns:
        [V, D], detached, in the model's dtype and on its device.

    Raises:
        TypeError: not a CLIP model, or no such projection (SigLIP's pooling head, a ResNet); the message
            names what was found.

    Numerics: the weights as they are stored; where a model keeps them transposed, so is the view.

    Memory: none of its own; the result is a view of the model's weights.

    Example:
        >>> import semobridge_ext as sb
        >>> sb.clip.image_projection(sb.load_picto_clip()[0]).shape
        torch.Size([192, 192])
    """
    adapter = adapter_of("image_projection", model)
    projector = adapter.image_projector()
    if projector is None:
        found = (
            adapter.kind if adapter.vision_kind is None else f"{adapter.kind} with a {adapter.vision_kind}"
        )
        raise TypeError(
            f"image_projection: model must have a linear image projection, got {found} without one "
            "(SigLIP's attention pooling and ResNets end in no matrix of their own); "
            "use a model with a linear projector, or pass the matrix if it has one under another name"
        )
    return _matrix("image_projection", adapter.kind, projector, "the algebra of IsoCLIP")

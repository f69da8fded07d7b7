"""The linear and affine maps that end a CLIP model's towers."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from semobridge_ext import _errors
from semobridge_ext.clip.adapter import Adapter, Projector
from semobridge_ext.clip.affine import Affine, NonlinearError
from semobridge_ext.clip.blocks import UNMERGED, has_adapters, plain_layer
from semobridge_ext.clip.families import adapter_of


def _affine(function: str, kind: str, projector: Projector) -> Affine:
    """From a parameter, or from a Linear layer, whose weight is the matrix's transpose."""
    owner, value = f"{kind}'s {projector.name}", plain_layer(projector.value)
    if has_adapters(value):
        raise NonlinearError(
            f"{function}: {owner} must hold all that it computes, got {type(value).__name__} with {UNMERGED}"
        )
    if isinstance(value, nn.Linear):
        bias: Tensor | None = None if value.bias is None else value.bias.detach()
        if bias is not None and not bool((bias != 0).any()):
            bias = None
        return Affine(value.weight.detach().T, bias)
    if isinstance(value, Tensor):
        return Affine(value.detach(), None)
    raise NonlinearError(
        f"{function}: {owner} must be a matrix or a Linear layer, got {type(value).__name__}; a tower that "
        "ends in a nonlinear head is outside of the algebra of SeMoBridge and IsoCLIP"
    )


def affine_text(function: str, adapter: Adapter) -> Affine:  # [T, D], [D]
    """What ends the text tower of a model; TypeError where it is no matrix, in the name of `function`."""
    projector = adapter.text_projector()
    if projector is None:
        raise TypeError(
            f"{function}: model must have a linear text projection, got {adapter.kind} without one; "
            "pass its matrix to Bridge(text_projection) if it has one under another name"
        )
    return _affine(function, adapter.kind, projector)


def affine_image(function: str, adapter: Adapter) -> Affine:  # [V, D], [D]
    """What ends the vision tower of a model; TypeError where it is no matrix, in the name of `function`."""
    projector = adapter.image_projector()
    if projector is None:
        found = (
            adapter.kind if adapter.vision_kind is None else f"{adapter.kind} with a {adapter.vision_kind}"
        )
        raise TypeError(
            f"{function}: model must have a linear image projection, got {found} without one "
            "(SigLIP's attention pooling and ResNets end in no matrix of their own); "
            "use a model with a linear projector, or pass the matrix if it has one under another name"
        )
    return _affine(function, adapter.kind, projector)


def _given(function: str, found: Affine, bias: bool) -> Tensor:
    if not isinstance(bias, bool):
        raise TypeError(_errors.message(function, "bias", "be True or False", bias, "True appends its row"))
    if found.bias is not None and not bias:
        remedy = "bias=True appends it as the last row, for rows with a one appended"
        contract = "be linear without bias where bias=False"
        raise TypeError(_errors.message(function, "model", contract, "a projection with a bias", remedy))
    return found.rows if bias else found.matrix


def text_projection(model: Any, *, bias: bool = False) -> Tensor:  # [T, D], or [T + 1, D]
    """The text projection W of a CLIP model, oriented so that ``x_text · W`` is the text feature.

    Args:
        model: a CLIP model of a family that ``semobridge_ext.clip`` lists; W may be a parameter (float16
            for OpenAI's clip on a GPU) or a Linear layer.
        bias: True appends the bias of the layer as the last row, where it has one that is not zero:
            ``(x_text, 1) · [W; b]`` is the text feature.

    Returns:
        [T, D], or [T + 1, D] with a bias; detached, in the model's dtype and on its device.

    Raises:
        TypeError: not a CLIP model, no such projection, or one with a bias (SigLIP) that bias=True did not
            ask for; the message names what was found.

    Numerics: the weights as they are stored; where a model keeps them transposed, so is the view.

    Memory: none of its own without a bias: the result is a view of the model's weights. A copy with one.

    Example:
        >>> import semobridge_ext as sb
        >>> sb.clip.text_projection(sb.load_picto_clip()[0]).shape
        torch.Size([192, 192])
    """
    name = "text_projection"
    return _given(name, affine_text(name, adapter_of(name, model)), bias)


def image_projection(model: Any, *, bias: bool = False) -> Tensor:  # [V, D], or [V + 1, D]
    """The image projection A of a CLIP model, oriented so that ``x_image · A`` is the image feature.

    Args:
        model: a CLIP model of a family that ``semobridge_ext.clip`` lists, with a vision transformer or a
            timm trunk under a linear head.
        bias: True appends the bias of the layer as the last row, where it has one that is not zero.

    Returns:
        [V, D], or [V + 1, D] with a bias; detached, in the model's dtype and on its device.

    Raises:
        TypeError: not a CLIP model, no such projection (SigLIP's pooling head, a ResNet), or one with a bias
            that bias=True did not ask for; the message names what was found.

    Numerics: the weights as they are stored; where a model keeps them transposed, so is the view.

    Memory: none of its own without a bias: the result is a view of the model's weights. A copy with one.

    Example:
        >>> import semobridge_ext as sb
        >>> sb.clip.image_projection(sb.load_picto_clip()[0]).shape
        torch.Size([192, 192])
    """
    name = "image_projection"
    return _given(name, affine_image(name, adapter_of(name, model)), bias)

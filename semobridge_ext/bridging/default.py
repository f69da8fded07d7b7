"""The default bridge of a process, and the function that uses it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from torch import Tensor

from semobridge_ext import _arrays, _errors
from semobridge_ext.bridging.bridge_module import Bridge

_WEIGHTS = Path(__file__).parents[1] / "data" / "picto_clip.safetensors"  # of the embedded CLIP
_log = logging.getLogger("semobridge_ext")

_default: Bridge | None = None
_embedded: Bridge | None = None


def use(model: Any) -> Bridge:
    """Sets the bridge that ``bridge(img_feats)`` uses, for the whole process, and returns it.

    Args:
        model: a CLIP model (see ``Bridge.from_clip``), a ``Bridge``, or ``"picto"``, the embedded one.

    Returns:
        The Bridge that is now the default.

    Raises:
        TypeError: none of these.

    Example:
        >>> import torch, semobridge_ext as sb
        >>> b = sb.use(sb.Bridge(torch.eye(8)))
        >>> sb.bridge(torch.ones(2, 8)).shape
        torch.Size([2, 8])
    """
    global _default
    if isinstance(model, Bridge):
        _default = model
    elif isinstance(model, str):
        if model != "picto":
            remedy = "or load that model and pass it"
            contract = "be a CLIP model, a Bridge or 'picto'"
            raise TypeError(_errors.message("use", "model", contract, model, remedy))
        _default = embedded_bridge()
    else:
        _default = Bridge.from_clip(model)
    return _default


def embedded_bridge() -> Bridge:
    """The bridge of the embedded CLIP, made once."""
    global _embedded
    if _embedded is None:
        _embedded = Bridge.from_pretrained(_WEIGHTS)
    return _embedded


def default_for(img_feats: Any) -> Bridge:
    """What ``use`` set; else the embedded CLIP's bridge, if the width is its own (ValueError if not)."""
    if _default is not None:
        return _default
    known = isinstance(img_feats, Tensor) or _arrays.is_array(img_feats)
    width = img_feats.shape[-1] if known and img_feats.ndim else None
    embedded = embedded_bridge()
    if width is not None and width != embedded.text_projection.shape[1]:
        raise ValueError(
            f"bridge: img_feats has width {width} and no default bridge is set; "
            "write sb.use(model) once, with the CLIP model that made the features"
        )
    if width is not None:
        _log.warning("bridge: no model set, using the embedded picto CLIP's bridge; sb.use(model) sets one")
        use(embedded)
    return embedded


def bridge(
    img_feats: _arrays.Rows,  # [.., D]
    bridge: Bridge | str | None = None,
    *,
    class_bias: Any = None,  # [T], [C, T] or [.., T]
    project: bool = True,
    normalize: bool = True,
) -> _arrays.Rows:  # [.., D], or [.., T] with project=False
    """Carries image features into the text modality: ``norm(ℓ·norm(f W⁺ + τ)·W)``.

    Args:
        img_feats: [.., D] raw outputs of ``encode_image`` (not unit rows; any length works where the
            result is normalised and no bias is given). A tensor of float32, float64, bfloat16 or float16,
            or a NumPy array of one of them that NumPy has.
        bridge: the Bridge to use, or ``"picto"``, the embedded one; default: what ``use`` set.
        class_bias: τ, [T], one row per class [C, T] for features [C, D] or [C, K, D], or [.., T].
            For support images only, never for queries.
        project: False returns the text-width feature ê [.., T] before W.
        normalize: True gives unit rows; False gives ``ℓ·norm(e)·W`` (with ``project=False``,
            ``ℓ·norm(e)``), the form whose mean over shots makes a prototype.

    Returns:
        [.., D] (or [.., T]) in the dtype of ``img_feats``, an array for an array, computed over its
        memory; NaN stays in its row, a zero row is zero.

    Raises:
        TypeError: kind or dtype. ValueError: width, device, bias shape, or no default bridge set.

    Numerics: float32 accumulation (float64 for float64), projector folded in float64, a row's result
        independent of its batch and of the thread count. Differentiable in img_feats, the bridge's
        inverse and class_bias; with gradients the two products run unfolded.

    Memory: the output; the folded matrices are kept by the bridge.

    Example:
        >>> import torch, semobridge_ext as sb
        >>> b = sb.Bridge(torch.eye(2))
        >>> sb.bridge(torch.tensor([3.0, 4.0]), b)
        tensor([0.6000, 0.8000])

    SeMoBridge, arXiv 2509.26036, eq. 3-5.
    """
    b = bridge if bridge is not None else _default
    if b is None:
        b = default_for(img_feats)
    elif not isinstance(b, Bridge):
        if not isinstance(b, str) or b != "picto":
            remedy = "make one with sb.Bridge(text_projection) or sb.Bridge.from_clip(model)"
            contract, got = "be a Bridge or 'picto'", _errors.describe(b)
            raise TypeError(_errors.message("bridge", "bridge", contract, got, remedy))
        b = embedded_bridge()
    return b(img_feats, class_bias=class_bias, project=project, normalize=normalize)

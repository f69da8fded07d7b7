"""What a bridge asks of its matrix, its numbers and a class bias."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from semobridge_ext import _arrays, _errors, _numbers
from semobridge_ext.clip.affine import with_bias


def checked_projection(text_projection: Any, text_bias: Any) -> Tensor:  # [T, D]
    """W, or [W; b] where a bias is given."""
    text_projection = _arrays.tensor("Bridge", "text_projection", text_projection)
    w = _errors.check_float_tensor("Bridge", "text_projection", text_projection).detach()
    if w.dim() != 2 or w.numel() == 0:
        remedy = "pass the [T, D] matrix, or use Bridge.from_clip(model)"
        raise ValueError(_errors.message("Bridge", "text_projection", "be 2-D", w, remedy))
    _errors.check_finite("Bridge", "text_projection", w, "reload the model's weights")
    return with_bias("Bridge", "text_bias", w, text_bias)


def checked_atol(value: Any) -> float:
    _numbers.check_number("Bridge", "atol", value, least=0, remedy="the paper uses 0.3")
    return float(value)


def checked_length(value: Any) -> float:
    remedy = "pass the mean length of the un-projected text features"
    _numbers.check_number("Bridge", "text_length", value, above=0, remedy=remedy)
    return float(value)


def checked_state(state: Any) -> tuple[float, float]:
    """atol and text_length out of a state_dict."""
    known = isinstance(state, Tensor) and state.shape == (2,) and state.is_floating_point()
    if not known or not 0 <= float(state[0]) < float("inf") or not 0 < float(state[1]) < float("inf"):
        contract, remedy = "be [atol, text_length]", "take it from a Bridge's state_dict"
        raise ValueError(_errors.message("Bridge.load_state_dict", "extra state", contract, state, remedy))
    return float(state[0]), float(state[1])


def checked_bias(
    f: Tensor,  # [.., D]
    bias: Any,  # [T], [C, T] or [.., T]
    width: int,
) -> Tensor:
    """The bias in a shape that broadcasts to that of e, whose last dimension is `width`, T."""
    bias = _arrays.tensor("bridge", "class_bias", bias, f.device)
    _errors.check_float_tensor("bridge", "class_bias", bias)
    _errors.check_same_device("bridge", "class_bias", bias, f.device)
    full = (*f.shape[:-1], width)
    if bias.shape == full or (bias.dim() == 1 and bias.shape[0] == full[-1]):
        return bias
    if bias.dim() == 2 and len(full) >= 2 and bias.shape == (full[0], full[-1]):
        return bias.reshape(full[0], *[1] * (len(full) - 2), full[-1])
    contract = f"be [T], [C, T] with C the first dimension of img_feats, or {list(full)}"
    remedy = "support images are [C, K, D] with bias [C, T]; queries take none"
    raise ValueError(_errors.message("bridge", "class_bias", contract, bias, remedy))

"""The oracle of the bridge: SeMoBridge's closed form as the paper writes it (arXiv 2509.26036, §3.2)."""

from __future__ import annotations

import torch
from torch import Tensor

from semobridge_ext._ops.project_normalize.reference import scale_rows


def pinv(
    text_projection: Tensor,  # [T, D]
    atol: float = 0.3,
) -> Tensor:  # [D, T]
    """``W⁺``: the pseudo-inverse with singular values ≤ ``atol`` dropped."""
    return torch.linalg.pinv(text_projection, atol=atol, rtol=0.0)


def bridge(
    img_feats: Tensor,  # [.., D], raw outputs of encode_image
    text_projection: Tensor,  # [T, D]
    *,
    inverse: Tensor | None = None,  # [D, T]
    atol: float = 0.3,
    text_length: float = 1.0,
    class_bias: Tensor | None = None,  # broadcastable to [.., T]
    project: bool = True,
    normalize: bool = True,
) -> Tensor:  # [.., D], or [.., T] with project=False
    """``e = f W⁺ + τ``; ``ê = ℓ·norm(e)``; ``ê W``; unit rows with ``normalize``."""
    if inverse is None:
        inverse = pinv(text_projection, atol)
    e = img_feats @ inverse
    if class_bias is not None:
        e = e + class_bias
    e = scale_rows(e, text_length)
    if project:
        e = e @ text_projection
    return scale_rows(e) if normalize else e

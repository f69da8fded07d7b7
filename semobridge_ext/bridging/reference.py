"""The oracle of the bridge: SeMoBridge's closed form as the paper writes it (arXiv 2509.26036, §3.2)."""

from __future__ import annotations

import torch
from torch import Tensor

from semobridge_ext._ops.project_normalize.reference import scale_rows


def pinv(
    text_projection: Tensor,  # [T, D]
    atol: float = 0.3,
) -> Tensor:  # [D, T]
    """``W⁺``: the pseudo-inverse with singular values ≤ ``atol`` dropped.

    Args:
        text_projection: [T, D] floating point.
        atol: the largest singular value that is dropped; absolute.

    Returns:
        [D, T] of the same dtype.

    Raises:
        RuntimeError: not a floating-point matrix (PyTorch's own message).

    Numerics: one SVD in the dtype of the input. Differentiable.

    Memory: O(T·D).

    Example:
        >>> import torch, semobridge_ext as sb
        >>> sb.reference.pinv(torch.diag(torch.tensor([2.0, 0.1])))
        tensor([[0.5000, 0.0000],
                [0.0000, 0.0000]])
    """
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
    """``e = f W⁺ + τ``; ``ê = ℓ·norm(e)``; ``ê W``; unit rows with ``normalize``.

    Args:
        img_feats: [.., D] floating point, raw outputs of encode_image.
        text_projection: [T, D] W.
        inverse: [D, T] W⁺; None computes it with ``atol``.
        atol: singular values up to it are dropped.
        text_length: ℓ.
        class_bias: τ, broadcastable to [.., T].
        project: multiply by W; False returns ê.
        normalize: unit rows at the end.

    Returns:
        [.., D] of the same dtype, or [.., T] with ``project=False``.

    Raises:
        RuntimeError: shapes that do not fit each other (PyTorch's own message).

    Numerics: every step rounds to the dtype of the input. Differentiable in all tensors.

    Memory: O(rows·(D + T)): each step is written out.

    Example:
        >>> import torch, semobridge_ext as sb
        >>> sb.reference.bridge(torch.tensor([[3.0, 4.0]]), torch.eye(2))
        tensor([[0.6000, 0.8000]])

    SeMoBridge, arXiv 2509.26036, §3.2.
    """
    if inverse is None:
        inverse = pinv(text_projection, atol)
    e = img_feats @ inverse
    if class_bias is not None:
        e = e + class_bias
    e = scale_rows(e, text_length)
    if project:
        e = e @ text_projection
    return scale_rows(e) if normalize else e

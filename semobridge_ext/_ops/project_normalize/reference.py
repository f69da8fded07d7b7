"""The oracle of project_normalize: one product, one norm."""

from __future__ import annotations

import torch
from torch import Tensor


def scale_rows(
    n: Tensor,  # [.., M]
    scale: float = 1.0,
    normalize: bool = True,
) -> Tensor:  # [.., M]
    """``scale·n/‖n‖``, zero rows staying zero; ``scale·n`` without ``normalize``.

    Args:
        n: [.., M] floating point.
        scale: length of the rows, or their factor without ``normalize``.
        normalize: divide by the row's length.

    Returns:
        [.., M] of the same dtype.

    Raises:
        RuntimeError: not floating point (PyTorch's own message).

    Numerics: in the dtype of the input; long rows may overflow in squares. Differentiable in ``n``.

    Memory: three arrays of the input's size.

    Example:
        >>> import torch, semobridge_ext as sb
        >>> sb.reference.scale_rows(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), 10.0)
        tensor([[6., 8.],
                [0., 0.]])
    """
    if not normalize:
        return n * scale
    norm = torch.linalg.vector_norm(n, dim=-1, keepdim=True)
    return torch.where(norm == 0, torch.zeros_like(n), n / norm) * scale


def project_normalize(
    x: Tensor,  # [.., K]
    matrix: Tensor,  # [K, M]
    *,
    bias: Tensor | None = None,  # [M] or [.., M]
    scale: float = 1.0,
    normalize: bool = True,
) -> Tensor:  # [.., M]
    """``scale·norm(x·matrix + bias)``.

    Args:
        x: [.., K] floating point.
        matrix: [K, M] of the same dtype.
        bias: [M] or [.., M].
        scale: length of the rows, or their factor without ``normalize``.
        normalize: divide by the row's length; a zero row stays zero.

    Returns:
        [.., M] of the same dtype.

    Raises:
        RuntimeError: shapes that do not fit each other (PyTorch's own message).

    Numerics: every step rounds to the dtype of the input. Differentiable in all tensors.

    Memory: O(rows·M): the product is written out.

    Example:
        >>> import torch, semobridge_ext as sb
        >>> sb.reference.project_normalize(torch.tensor([[3.0, 4.0]]), torch.eye(2))
        tensor([[0.6000, 0.8000]])
    """
    n = x @ matrix
    if bias is not None:
        n = n + bias
    return scale_rows(n, scale, normalize)

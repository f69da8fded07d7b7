"""project_normalize on the CPU: the fused core, over matrices packed once."""

from __future__ import annotations

import torch
from torch import Tensor

from semobridge_ext.runtime.backend import _C, DTYPE_CODES
from semobridge_ext.runtime.rows import compute_dtype
from semobridge_ext.runtime.threads import thread_count
from semobridge_ext.runtime.views import packed_view, view


def pack_matrix(matrix: Tensor, compute: torch.dtype) -> Tensor:  # [K, M] -> panels of columns
    """The matrix as the core reads it, in the dtype of the sums."""
    matrix = matrix.detach()
    if matrix.stride(1) != 1:
        matrix = matrix.contiguous()
    rows, cols = matrix.shape
    packed = torch.empty(_C.packed_elements(rows, cols), dtype=compute)
    _C.pack_matrix(view(matrix), DTYPE_CODES[compute], packed.data_ptr())
    return packed


class Projection:
    """One or two fused products per row (csrc/project_normalize/project_normalize.h), on CPU tensors.

    ``h = x·first (+ bias)``, normalised to length ``scale_first`` or multiplied by it; then, with a
    second matrix, ``y = h·second`` or, with ``residual``, ``y = x − h·second``, normalised to length
    ``scale`` or multiplied by it. With one matrix the last pair belongs to the first product.

    Args:
        first: [K, M], any float dtype.
        second: [M, O] or None.
        compute: torch.float32 or torch.float64, the dtype of the packed copies.
        normalize_first: normalise behind the first of two products.
        scale_first: length of those rows, or a plain factor.
        normalize: normalise behind the last product.
        scale: length of the rows that come out, or a plain factor.
        residual: subtract the second product from x; needs O = K.

    Returns:
        A callable: ``projection(x)`` maps a CPU tensor [.., K] to [.., O] in the dtype of ``x``.

    Raises:
        ValueError: matrices that do not fit each other. Calls check nothing: that is the op's task.

    Numerics: accumulates in ``compute``; not differentiable.

    Memory: one packed copy of each matrix, columns rounded up to 32.

    Example:
        >>> import torch, semobridge_ext as sb
        >>> p = sb.ops.Projection(torch.eye(2), normalize=True)
        >>> p(torch.tensor([[3.0, 4.0]]))
        tensor([[0.6000, 0.8000]])
    """

    __slots__ = ("_keep", "_run", "cols", "compute", "rows")

    def __init__(
        self,
        first: Tensor,
        second: Tensor | None = None,
        *,
        compute: torch.dtype = torch.float32,
        normalize_first: bool = False,
        scale_first: float = 1.0,
        normalize: bool = True,
        scale: float = 1.0,
        residual: bool = False,
    ) -> None:
        if second is not None and second.shape[0] != first.shape[1]:
            raise ValueError(
                f"Projection: second must have {first.shape[1]} rows, got {list(second.shape)}; "
                "its rows are the columns of first"
            )
        self.compute = compute
        self.rows, mid = first.shape
        packed = [pack_matrix(first, compute)]
        if second is None:
            self.cols = mid
            native = _C.Projection(packed_view(packed[0], self.rows, mid), normalize, scale)
        else:
            self.cols = second.shape[1]
            packed.append(pack_matrix(second, compute))
            native = _C.Projection(
                packed_view(packed[0], self.rows, mid), normalize_first, scale_first,
                packed_view(packed[1], mid, self.cols), normalize, scale, residual,
            )  # fmt: skip
        self._keep = packed
        self._run = native.run

    def __call__(
        self,
        x: Tensor,  # [.., K]
        *,
        bias: Tensor | None = None,  # [M] or [N, M], compute dtype
        norms: Tensor | None = None,  # [N], compute dtype, written
        out: Tensor | None = None,  # [.., O], written
    ) -> Tensor:  # [.., O]
        """Applies it; the caller has checked kind, dtype, device and shape."""
        rows, cols = self.rows, self.cols
        contiguous = x.is_contiguous()
        if out is None:
            same = contiguous and rows == cols
            out = torch.empty_like(x) if same else x.new_empty((*x.shape[:-1], cols))
        if not contiguous:
            x = x.reshape(-1, rows)
            if x.stride(1) != 1:
                x = x.contiguous()
            n, x_stride = x.shape[0], x.stride(0)
        else:
            n, x_stride = x.numel() // rows, rows
        bias_ptr = bias_stride = 0
        if bias is not None:
            if bias.stride(-1) != 1:
                bias = bias.contiguous()
            bias_ptr = bias.data_ptr()
            bias_stride = 0 if bias.dim() == 1 else bias.stride(0)
        self._run(
            x.data_ptr(), DTYPE_CODES[x.dtype], n, x_stride, out.data_ptr(), cols,
            bias_ptr, bias_stride, 0 if norms is None else norms.data_ptr(), thread_count(),
        )  # fmt: skip
        return out


def project_normalize(
    x: Tensor,  # [N, K]
    matrix: Tensor,  # [K, M]
    bias: Tensor | None,  # [M] or [N, M] compute dtype
    scale: float,
    normalize: bool,
) -> tuple[Tensor, Tensor]:  # [N, M], [N] compute dtype, zeros without `normalize`
    """One call, with a matrix packed for it alone."""
    compute = compute_dtype(x.dtype)
    norms = (torch.empty if normalize else torch.zeros)(x.shape[0], dtype=compute)
    plan = Projection(matrix, compute=compute, normalize=normalize, scale=scale)
    return plan(x, bias=bias, norms=norms if normalize else None), norms

"""project_normalize on the CPU: the fused core, over matrices packed once."""

from __future__ import annotations

import torch
from torch import Tensor

from semobridge_ext import _errors
from semobridge_ext.runtime.backend import _C, DTYPE_CODES
from semobridge_ext.runtime.rows import compute_dtype, materialized, unit_columns
from semobridge_ext.runtime.threads import thread_count
from semobridge_ext.runtime.views import address, packed_view, values, view

_NAME = "Projection"


def pack_matrix(matrix: Tensor, compute: torch.dtype) -> Tensor:  # [K, M] -> panels of columns
    """The matrix as the core reads it, in the dtype of the sums."""
    matrix = unit_columns(matrix)
    rows, cols = matrix.shape
    packed = torch.empty(_C.packed_elements(rows, cols), dtype=compute, device="cpu")
    _C.pack_matrix(view(matrix), DTYPE_CODES[compute], address(packed))
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
        TypeError: kind or dtype of a matrix, or another ``compute``. ValueError: matrices that do not fit
            each other, or not on the CPU. Calls check theirs.

    Numerics: accumulates in ``compute``; not differentiable.

    Memory: one packed copy of each matrix, columns rounded up to 32.

    Example:
        >>> import torch, semobridge_ext as sb
        >>> p = sb.ops.Projection(torch.eye(2), normalize=True)
        >>> p(torch.tensor([[3.0, 4.0]]))
        tensor([[0.6000, 0.8000]])
    """

    __slots__ = ("_keep", "_mid", "_run", "cols", "compute", "rows")

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
        if compute not in (torch.float32, torch.float64):
            remedy = "float32 serves half types too"
            raise TypeError(_errors.message(_NAME, "compute", "be float32 or float64", compute, remedy))
        for name, matrix in (("first", first), ("second", second)):
            if matrix is None and name == "second":
                continue
            checked = _errors.check_float_tensor(_NAME, name, matrix)
            _check_cpu(name, checked)
            if checked.dim() != 2 or checked.numel() == 0:
                remedy = "pass a matrix with rows and columns"
                raise ValueError(_errors.message(_NAME, name, "be 2-D and not empty", checked, remedy))
        if residual and (second is None or second.shape[1] != first.shape[0]):
            remedy = "the second product is subtracted from x"
            raise ValueError(
                _errors.message(_NAME, "residual", f"have a second of width {first.shape[0]}", second, remedy)
            )
        if second is not None and second.shape[0] != first.shape[1]:
            raise ValueError(
                f"Projection: second must have {first.shape[1]} rows, got {list(second.shape)}; "
                "its rows are the columns of first"
            )
        self.compute = compute
        self.rows, mid = first.shape
        self._mid = mid
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
        """Applies it.

        Args:
            x: [.., K] on the CPU; float64 rows where ``compute`` is float64, others where it is float32.
            bias: [M], or one row per row of x, [N, M], in ``compute``; M are the columns of ``first``.
            norms: [N] in ``compute``, contiguous, written: ‖y‖ before the last normalisation.
            out: [.., O] in the dtype of x, contiguous, written; apart from x.

        Raises:
            TypeError: kind or dtype. ValueError: shape, device, or an output that cannot be written so.
        """
        _errors.check_float_tensor(_NAME, "x", x)
        _errors.check_last_dim(_NAME, "x", x, self.rows, f"first has {self.rows} rows")
        _check_cpu("x", x)
        self._check_compute(x)
        shape, n = (*x.shape[:-1], self.cols), x.numel() // self.rows
        if bias is not None:
            self._check_same("bias", bias, self.compute, ((self._mid,), (n, self._mid)))
            bias = values(bias)
        if norms is not None:
            self._check_same("norms", norms, self.compute, ((n,),))
            _check_written("norms", norms)
        if out is not None:
            self._check_same("out", out, x.dtype, (shape,))
            _check_written("out", out)
            if out.untyped_storage().data_ptr() == x.untyped_storage().data_ptr() and n > 0:
                remedy = "pass another tensor, or none"
                raise ValueError(_errors.message(_NAME, "out", "lie apart from x", "its memory", remedy))
        return self._unchecked(materialized(x.detach()), bias=bias, norms=norms, out=out)

    def _check_compute(self, x: Tensor) -> None:
        if compute_dtype(x.dtype) is not self.compute:
            contract = f"be of a dtype that is summed in {self.compute}"
            remedy = f"make it with compute={compute_dtype(x.dtype)}"
            raise TypeError(_errors.message(_NAME, "x", contract, x, remedy))

    def _check_same(
        self, name: str, value: Tensor, dtype: torch.dtype, shapes: tuple[tuple[int, ...], ...]
    ) -> None:
        _errors.check_float_tensor(_NAME, name, value)
        _check_cpu(name, value)
        if value.dtype is not dtype:
            remedy = f"convert it with .to({dtype})"
            raise TypeError(_errors.message(_NAME, name, f"be {dtype}", value, remedy))
        if tuple(value.shape) not in shapes:
            contract = " or ".join(str(list(shape)) for shape in shapes)
            remedy = "it goes with the rows of x and the columns of the matrices"
            raise ValueError(_errors.message(_NAME, name, f"be {contract}", value, remedy))

    def _unchecked(
        self,
        x: Tensor,  # [.., K]
        *,
        bias: Tensor | None = None,  # [M] or [N, M], compute dtype
        norms: Tensor | None = None,  # [N], compute dtype, written
        out: Tensor | None = None,  # [.., O], written
    ) -> Tensor:  # [.., O]
        """The same for a caller that has checked everything: one image's call would feel it."""
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
            bias_ptr = address(bias)
            bias_stride = 0 if bias.dim() == 1 else bias.stride(0)
        self._run(
            x.data_ptr(), DTYPE_CODES[x.dtype], n, x_stride, out.data_ptr(), cols,
            bias_ptr, bias_stride, 0 if norms is None else address(norms), thread_count(),
        )  # fmt: skip
        return out


def _check_cpu(name: str, value: Tensor) -> None:
    _errors.check_same_device(_NAME, name, value, torch.device("cpu"))


def _check_written(name: str, value: Tensor) -> None:
    whole = value.is_contiguous() and not value.is_neg() and not value._is_zerotensor()
    if not whole or value.data_ptr() % value.element_size() != 0:
        remedy = "pass a fresh tensor, torch.empty(...)"
        raise ValueError(_errors.message(_NAME, name, "be contiguous and aligned", value, remedy))


def project_normalize(
    x: Tensor,  # [N, K]
    matrix: Tensor,  # [K, M]
    bias: Tensor | None,  # [M] or [N, M] compute dtype
    scale: float,
    normalize: bool,
) -> tuple[Tensor, Tensor]:  # [N, M], [N] compute dtype, zeros without `normalize`
    """One call, with a matrix packed for it alone."""
    compute = compute_dtype(x.dtype)
    norms = (torch.empty if normalize else torch.zeros)(x.shape[0], dtype=compute, device="cpu")
    plan = Projection(matrix, compute=compute, normalize=normalize, scale=scale)
    bias = None if bias is None else values(bias)
    return plan._unchecked(materialized(x), bias=bias, norms=norms if normalize else None), norms

"""project_normalize: a matrix product whose rows leave normalised.

    n = x·M + b          y = s·n/‖n‖   (or s·n with normalize=False)

and, with ŷ = n/‖n‖ and g the gradient of y,

    grad_n = s·(g − ŷ (ŷ·g))/‖n‖       grad_x = grad_n·Mᵀ       grad_M = xᵀ·grad_n

The step shared by SeMoBridge's bridge (arXiv 2509.26036, §3.2), IsoCLIP's projectors and PCA.
"""

from __future__ import annotations

import torch
from torch import Tensor

from semobridge_ext import _errors, _numbers
from semobridge_ext._ops.project_normalize import cpu, cuda, eager, takes
from semobridge_ext.runtime import self_check
from semobridge_ext.runtime.choice import choose, in_transform
from semobridge_ext.runtime.rows import compute_dtype

_NAME = "project_normalize"


@torch.library.custom_op("semobridge::project_normalize", mutates_args=())
def _project_normalize(
    x: Tensor,  # [N, K]
    matrix: Tensor,  # [K, M]
    bias: Tensor | None,  # [M] or [N, M]
    scale: float,
    normalize: bool,
) -> tuple[Tensor, Tensor]:  # [N, M], [N]
    if bias is not None:
        bias = bias.to(compute_dtype(x.dtype))
    name = choose(takes.KERNELS, x, matrix)
    if name == "eager":
        return eager.project_normalize(x, matrix, bias, scale, normalize)
    native = cuda.project_normalize if x.is_cuda else cpu.project_normalize
    return native(x, matrix, bias, scale, normalize)


@_project_normalize.register_fake
def _(x: Tensor, matrix: Tensor, bias: Tensor | None, scale: float, normalize: bool) -> tuple[Tensor, Tensor]:
    y = x.new_empty(x.shape[0], matrix.shape[1])
    return y, x.new_empty(x.shape[0], dtype=compute_dtype(x.dtype))


def _setup_context(ctx, inputs, output) -> None:
    x, matrix, bias, scale, normalize = inputs
    y, norms = output
    ctx.save_for_backward(x, matrix, bias, y, norms)
    ctx.scale, ctx.normalize = scale, normalize


def _backward(ctx, grad_y: Tensor | None, grad_norms: Tensor | None):
    x, matrix, bias, y, norms = ctx.saved_tensors
    compute = compute_dtype(x.dtype)
    scale = ctx.scale
    with torch.autocast(x.device.type, enabled=False):
        g = torch.zeros_like(y, dtype=compute) if grad_y is None else grad_y.to(compute)
        if ctx.normalize:
            unit = y.to(compute) / scale if scale != 0 else torch.zeros_like(g)
            # A zero row stays zero whatever its neighbourhood does: its gradient is defined as zero.
            inverse = torch.where(norms == 0, torch.zeros_like(norms), scale / norms).unsqueeze(-1)
            grad_n = (g - unit * (unit * g).sum(-1, keepdim=True)) * inverse
            if grad_norms is not None:  # wanted by second derivatives only
                grad_n = grad_n + unit * grad_norms.unsqueeze(-1)
        else:
            grad_n = g * scale
        grad_x = grad_matrix = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad_n @ matrix.to(compute).T).to(x.dtype)
        if ctx.needs_input_grad[1]:
            grad_matrix = (x.to(compute).T @ grad_n).to(matrix.dtype)
        if bias is not None and ctx.needs_input_grad[2]:
            grad_bias = (grad_n.sum(0) if bias.dim() == 1 else grad_n).to(bias.dtype)
    return grad_x, grad_matrix, grad_bias, None, None


_project_normalize.register_autograd(_backward, setup_context=_setup_context)


def _check(x: Tensor, matrix: Tensor, bias: Tensor | None) -> None:
    _errors.check_float_tensor(_NAME, "x", x)
    _errors.check_float_tensor(_NAME, "matrix", matrix)
    if matrix.dim() != 2 or matrix.numel() == 0:
        remedy = "pass a [K, M] matrix"
        raise ValueError(_errors.message(_NAME, "matrix", "be 2-D and not empty", matrix, remedy))
    _errors.check_last_dim(_NAME, "x", x, matrix.shape[0], f"matrix is {list(matrix.shape)}")
    _errors.check_same_device(_NAME, "matrix", matrix, x.device)
    if bias is not None:
        _errors.check_float_tensor(_NAME, "bias", bias)
        _errors.check_same_device(_NAME, "bias", bias, x.device)
        wanted = (*x.shape[:-1], matrix.shape[1])
        try:
            fits = torch.broadcast_shapes(bias.shape, wanted) == wanted
            fits = fits and bias.dim() > 0 and bias.shape[-1] == matrix.shape[1] and bias.dim() <= x.dim()
        except RuntimeError:
            fits = False
        if not fits:
            contract = f"broadcast to {list(wanted)}"
            remedy = "pass [M] or one row per row of x"
            raise ValueError(_errors.message(_NAME, "bias", contract, bias, remedy))


def project_normalize(
    x: Tensor,  # [.., K]
    matrix: Tensor,  # [K, M]
    *,
    bias: Tensor | None = None,  # [M] or broadcastable to [.., M]
    scale: float = 1.0,
    normalize: bool = True,
) -> Tensor:  # [.., M]
    """Projects rows and normalises them in one pass: ``scale · norm(x·matrix + bias)``.

    Args:
        x: [.., K] float32, float64, bfloat16 or float16; any strides.
        matrix: [K, M], any of these dtypes; read in float32 (float64 for float64 ``x``).
        bias: [M], or any shape that broadcasts to [.., M]; added before the norm.
        scale: length of the rows that come out; with ``normalize=False`` a plain factor.
        normalize: False skips the norm.

    Returns:
        [.., M] in the dtype of ``x``. A zero row stays zero; NaN and infinity stay in their row.

    Raises:
        TypeError: not a tensor, or not a float dtype. ValueError: shapes or devices that do not fit.

    Numerics: accumulates in float32 (float64 for float64 rows) in an order that depends neither on
        the batch nor on the number of threads. Differentiable in x, matrix and bias; the gradient of
        a zero row is zero. Keeps the input's dtype under autocast.

    Memory: the output, and a packed copy of ``matrix`` (use ``ops.Projection`` to keep that copy).

    Example:
        >>> import torch
        >>> from semobridge_ext.ops import project_normalize
        >>> project_normalize(torch.tensor([[3.0, 4.0]]), torch.eye(2))
        tensor([[0.6000, 0.8000]])
    """
    _check(x, matrix, bias)
    if not _numbers.is_real(scale):
        remedy = "pass a Python float; multiply the result for a tensor"
        raise TypeError(_errors.message(_NAME, "scale", "be a number", scale, remedy))
    rows, cols = matrix.shape
    lead = x.shape[:-1]
    if bias is not None and bias.dim() > 1:
        bias = bias.expand(*lead, cols).reshape(-1, cols)
    flat = x.resolve_neg().reshape(-1, rows)
    if in_transform():  # registered operators do not pass through torch.func, the formula does
        y, _ = eager.transformed(flat, matrix, bias, float(scale), normalize)
    else:
        y, _ = _project_normalize(flat, matrix, bias, float(scale), normalize)
    return y.reshape(*lead, cols)


def _check_kernel(device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """What is compared before `auto` takes a kernel."""
    x, matrix = (self_check.fixed(n, m, device=device, dtype=dtype) for n, m in ((5, 48), (48, 40)))
    bias = self_check.fixed(40, device=device)
    return [
        *_project_normalize(x, matrix, bias, 0.5, True),
        _project_normalize(x, matrix, None, 1.0, False)[0],
    ]


self_check.register(_NAME, _check_kernel)

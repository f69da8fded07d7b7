"""How tensors cross to the native core: views, addresses, and where to run."""

from __future__ import annotations

import torch
from torch import Tensor

from semobridge_ext import _errors
from semobridge_ext.runtime.backend import DTYPE_CODES
from semobridge_ext.runtime.rows import materialized

View = tuple[int, int, int, int, int]  # address (0: none), dtype, rows, columns, row stride
Packed = tuple[int, int, int, int]  # address, dtype, rows and columns before packing


def address(tensor: Tensor | None) -> int:
    """Where it lies; 0: none."""
    if tensor is None:
        return 0
    where = tensor.data_ptr()
    if where == 0 and tensor.numel() > 0:
        remedy = "pass ordinary tensors, with no meta device and no fake mode in force"
        raise ValueError(
            _errors.message("native core", "a tensor", "hold its values in memory", tensor, remedy)
        )
    return where


def values(vector: Tensor) -> Tensor:
    """As the core reads what crosses by address: contiguous, aligned, nothing lazy; else a copy."""
    vector = materialized(vector.detach()).contiguous()
    return vector if vector.data_ptr() % vector.element_size() == 0 else vector.clone()


def view(matrix: Tensor) -> View:  # [N, M], unit column stride
    return (address(matrix), DTYPE_CODES[matrix.dtype], *matrix.shape, matrix.stride(0))


def row_view(bias: Tensor | None) -> View:
    """[M] for every row, [N, M], or none; contiguous: a copy made here would not outlive the view."""
    if bias is None:
        return (0, 0, 0, 0, 0)
    return view(bias) if bias.dim() == 2 else (address(bias), DTYPE_CODES[bias.dtype], 1, *bias.shape, 0)


def packed_view(panels: Tensor, rows: int, cols: int) -> Packed:  # of a [rows, cols] right operand
    return (address(panels), DTYPE_CODES[panels.dtype], rows, cols)


def place(tensor: Tensor) -> tuple[int, int]:
    """The device and its current stream."""
    if not tensor.is_cuda:
        return 0, 0  # the emulation of tests/cuda_emulation
    if torch.cuda.current_device() != tensor.device.index:
        # CUDA then stays on the tensor's device where the thread's own has no context, and PyTorch remembers
        # the thread's own: the kernel's launcher need not leave a device of which it would make a context.
        with torch.cuda.device(tensor.device):
            pass
    return tensor.device.index, torch.cuda.current_stream(tensor.device).cuda_stream

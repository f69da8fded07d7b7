"""A projection and its norm by Triton, prepared once and applied many times."""

from __future__ import annotations

import torch
from torch import Tensor

from semobridge_ext.runtime.backend import resolve
from semobridge_ext.runtime.choice import takes_projection


class TritonProjection:
    """``norm(x·matrix)``, both in one kernel (_ops/project_normalize/triton.py).

    Args:
        matrix: [K, M] on any device; kept in float32 on `device`.
        device: of the rows.

    Numerics: float32 sums of exact products; half rows meet the float32 matrix in two parts.

    Memory: the matrix, and its parts for each half dtype that rows had.
    """

    def __init__(self, matrix: Tensor, device: torch.device) -> None:
        self._matrix = matrix.detach().to(device, torch.float32).contiguous()
        self._parts: dict[torch.dtype, Tensor] = {}

    def __call__(self, x: Tensor) -> Tensor:  # [.., K] -> [.., M]
        resolve("bridge", x.device, triton=takes_projection(x, self._matrix))
        from semobridge_ext._ops.project_normalize.triton import launch_project_normalize_fwd, split_matrix

        if x.dtype not in self._parts:
            self._parts[x.dtype] = split_matrix(self._matrix, x.dtype)[0]
        rows = x.detach().reshape(-1, x.shape[-1])
        out, _ = launch_project_normalize_fwd(rows, self._parts[x.dtype], None, 1.0, True)
        return out.reshape(*x.shape[:-1], out.shape[1])

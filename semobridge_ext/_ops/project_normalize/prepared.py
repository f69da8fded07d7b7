"""A projection prepared once and applied many times, on every device and backend."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from semobridge_ext._ops.project_normalize import cuda, eager
from semobridge_ext._ops.project_normalize.cpu import Projection
from semobridge_ext._ops.project_normalize.op import project_normalize
from semobridge_ext._ops.project_normalize.takes import PREPARED
from semobridge_ext.runtime import self_check
from semobridge_ext.runtime.choice import direct, direct_kernel
from semobridge_ext.runtime.rows import compute_dtype

Program = Callable[[Tensor], Tensor]


class PreparedProjection:
    """``scale·norm(x·matrix + offset)``; each program's operands are made at its first call.

    Args:
        matrix: [K, M] float64 on the CPU; None: only the CPU core has a program.
        offset: [M] float64 on the CPU, or None.
        normalize: False skips the norm.
        scale: length of the rows that come out, or a plain factor.
        packed: makes the CPU core's operands for a compute dtype, where two thin products are cheaper
            than the matrix; default: the matrix itself.
        called: the public function, for messages.

    Memory: one copy of the matrix per compute dtype in use, and per device and kernel.
    """

    __slots__ = ("_called", "_launched", "_normalize", "_offset", "_operands", "_pack", "_packed", "_scale",
                 "matrix")  # fmt: skip

    def __init__(
        self,
        matrix: Tensor | None,  # [K, M]
        offset: Tensor | None = None,  # [M]
        *,
        normalize: bool = True,
        scale: float = 1.0,
        packed: Callable[[torch.dtype], Projection] | None = None,
        called: str = "project_normalize",
    ) -> None:
        self.matrix, self._offset, self._normalize, self._scale = matrix, offset, normalize, scale
        self._pack, self._called = packed, called
        self._packed: dict[torch.dtype, Program] = {}
        self._launched: dict[tuple[str, torch.device], Program] = {}
        self._operands: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor | None]] = {}

    def program(self, where: str, x: Tensor) -> Program | None:
        """What runs a call that `choice.direct` answered with `where`; None: the operator has to.

        Under ``auto`` a GPU without a kernel for the call gets the prepared operands by PyTorch: the
        operators would widen the matrix anew, and a bridge multiply twice.
        """
        if where == "cpu":
            return self._packed.get(x.dtype) or self._packed_for(x.dtype)
        if self.matrix is None:
            return None
        kernel = direct_kernel(where, PREPARED, x, self.matrix, called=self._called)
        if not kernel and where == "auto":
            kernel = "eager"
        if not kernel:
            return None
        key = kernel, x.device
        if key not in self._launched:
            self._launched[key] = self._launch(kernel, x.device)
        return self._launched[key]

    def _packed_for(self, dtype: torch.dtype) -> Program:
        compute = compute_dtype(dtype)
        if compute not in self._packed:
            self._packed[compute] = self._projection(compute)
        self._packed[dtype] = self._packed[compute]
        return self._packed[dtype]

    def _projection(self, compute: torch.dtype) -> Program:
        if self._pack is not None:
            return self._pack(compute)._unchecked
        assert self.matrix is not None
        plan = Projection(self.matrix, compute=compute, normalize=self._normalize, scale=self._scale)
        run = plan._unchecked
        return run if self._offset is None else partial(run, bias=self._offset.to(compute))

    def _launch(self, kernel: str, device: torch.device) -> Program:
        make: Callable[..., Program] = cuda.Projection if kernel == "native" else eager.Projection
        return make(self.matrix, self._offset, device, normalize=self._normalize, scale=self._scale)

    def __call__(self, x: Tensor) -> Tensor:  # [.., K] -> [.., M]
        """Applies it to rows of its width, by a prepared program or by the operator."""
        where = direct(x, x)
        program = self.program(where, x) if where else None
        if program is not None:
            return program(x)
        matrix, offset = self._on(x.device, compute_dtype(x.dtype))
        return project_normalize(x, matrix, bias=offset, scale=self._scale, normalize=self._normalize)

    def _on(self, device: torch.device, compute: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """The operator's operands."""
        key = device, compute
        if key not in self._operands:
            assert self.matrix is not None
            # Inference tensors could take no part in a later call's gradient.
            with torch.inference_mode(False):
                offset = None if self._offset is None else self._offset.to(device, compute)
                self._operands[key] = self.matrix.to(device, compute), offset
        return self._operands[key]


def _check_kernel(device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """What is compared before `auto` takes a kernel: few rows, many, and many of bfloat16 have their own."""
    projection = PreparedProjection(self_check.fixed(48, 40, device=torch.device("cpu"), dtype=torch.float64))
    rows = self_check.fixed(43, 48, device=device, dtype=dtype)
    found = [projection(rows[:3]), projection(rows)]
    if dtype is torch.bfloat16:
        found.append(projection(rows.repeat(-(-cuda.ONE_PART // len(rows)), 1)))
    return found


self_check.register(PREPARED.op, _check_kernel)

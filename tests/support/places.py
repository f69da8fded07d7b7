"""Where a test runs: each device and backend, and what each backend has kernels for.

On the CPU the tests run in every suite, which shows that they are right; on a CUDA device where there is one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest
import torch

import semobridge_ext as sb
from semobridge_ext.runtime import backend as _backend

# Calls that an explicit request must serve on CUDA tensors; any other one must be refused.
SERVED = {
    "native": ("bridge", "project_normalize", "project_normalize_grad", "topk", "predict", "oti", "ovi",
               "SeMoBridgeT"),
    "triton": ("support_logits", "support_logits_grad", "topk", "SeMoBridgeT"),
}  # fmt: skip


def runnable_isas() -> list[str]:
    """Instruction sets that this build has and this processor runs."""
    return [name for name, (_, runs) in _backend._C.isa_table().items() if runs]


def kernel_isas() -> list[str]:
    """Those with kernels of their own: the others differ in the products of codes alone."""
    return [name for name in runnable_isas() if not name.endswith("dot")]


class Place(NamedTuple):
    device: torch.device
    backend: str

    def serves(self, call: str) -> bool:
        """Whether the call has a kernel here, or needs none."""
        return self.device.type == "cpu" or call in SERVED.get(self.backend, (call,))

    @contextmanager
    def use(self, call: str) -> Iterator[None]:
        """The backend, for one call; a refusal is right where nothing was promised."""
        if self.backend == "native" and self.device.type == "cuda" and not _backend.HAS_CUDA:
            pytest.skip("the native module was built without CUDA kernels")
        with sb.backend(self.backend):
            if self.serves(call):
                yield
                return
            with pytest.raises(NotImplementedError, match="use backend"):
                yield
        pytest.skip(f"backend {self.backend!r} refuses {call}, as it should")


PLACES = [
    pytest.param(Place(torch.device(device), backend), id=f"{device}-{backend}", marks=marks)
    for device, backends, marks in (
        ("cpu", ("auto", "eager"), ()),
        ("cuda", ("auto", "eager", "native", "triton"), (pytest.mark.gpu,)),
    )
    for backend in backends
]

# What the tests of devices compute on.
W = torch.randn(40, 48, generator=torch.Generator().manual_seed(5)) * 0.3  # [T, D]


def rows(n: int, width: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(n)).to(dtype)

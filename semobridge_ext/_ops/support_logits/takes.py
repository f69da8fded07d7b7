"""What the kernels of support_logits take."""

from __future__ import annotations

import torch
from torch import Tensor

from semobridge_ext.runtime.choice import Answer, Kernels


def triton(queries: Tensor, keys: Tensor, *_: object) -> Answer:
    return "float64" if torch.float64 in (queries.dtype, keys.dtype) else True


def _products(queries: Tensor, keys: Tensor, *_: object) -> int:
    return queries.shape[0] * keys.shape[0]


KERNELS = Kernels("support_logits", lambda *_: False, triton, _products)

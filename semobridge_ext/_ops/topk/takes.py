"""What the kernels of topk take."""

from __future__ import annotations

import torch
from torch import Tensor

from semobridge_ext.runtime.choice import Answer, Kernels

MAX_LIST = 128  # candidates that one Triton program keeps per query
MAX_CUDA_LIST = 128  # kTopkCudaMax
CUDA_ROWS = (1 << 32) - 1  # counted in 32 bits, of which one number stands for none


def cuda(queries: Tensor, gallery: Tensor, k: int, *_: object) -> bool:
    fits = 1 <= k <= MAX_CUDA_LIST and gallery.shape[0] <= CUDA_ROWS
    return fits and torch.float64 not in (queries.dtype, gallery.dtype)


def triton(queries: Tensor, gallery: Tensor, k: int, *_: object) -> Answer:
    if k > MAX_LIST:
        return f"k > {MAX_LIST}"
    if gallery.shape[0] > (1 << 31) - 256:  # the last tile's rows are counted in 32 bits
        return "a gallery of 2³¹ rows"
    return "float64" if torch.float64 in (queries.dtype, gallery.dtype) else True


def _products(queries: Tensor, gallery: Tensor, *_: object) -> int:
    return queries.shape[0] * gallery.shape[0]


KERNELS = Kernels("topk", cuda, triton, _products)

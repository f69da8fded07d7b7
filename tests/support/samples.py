"""Sample inputs of ops/project_normalize: one list for the oracle, gradients, opcheck and compile."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Sample:
    name: str
    lead: tuple[int, ...]
    rows: int  # K
    cols: int  # M
    bias: str = "none"  # none, vector, row, full
    layout: str = "plain"  # plain, sliced, expanded, transposed, offset
    matrix_layout: str = "plain"
    scale: float = 1.0
    normalize: bool = True

    def make(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor | None]:
        x = _laid_out((*self.lead, self.rows), self.layout, dtype)
        # Unit spread of the product, a shifted mean so that no norm is dominated by one sign.
        matrix = _laid_out((self.rows, self.cols), self.matrix_layout, dtype) * self.rows**-0.5
        if self.matrix_layout == "transposed":
            matrix = matrix.T.contiguous().T
        bias = None
        if self.bias != "none":
            lead = {"vector": (), "row": (1,) * len(self.lead), "full": self.lead}[self.bias]
            bias = torch.randn(*lead, self.cols, dtype=torch.float64).to(dtype)
        return x, matrix.to(dtype), bias

    @property
    def options(self) -> dict[str, float | bool]:
        return {"scale": self.scale, "normalize": self.normalize}

    def __str__(self) -> str:
        return self.name


def _laid_out(shape: tuple[int, ...], layout: str, dtype: torch.dtype) -> Tensor:
    def draw(*size: int) -> Tensor:
        return (torch.randn(*size, dtype=torch.float64) + 0.1).to(dtype)

    if layout == "sliced":  # every second row and a window of columns of something larger
        base = draw(*shape[:-2], 2 * shape[-2], shape[-1] + 7)
        return base[..., ::2, 3 : 3 + shape[-1]]
    if layout == "expanded":
        return draw(*shape[:-2], 1, shape[-1]).expand(*shape)
    if layout == "transposed":
        return draw(*shape[:-2], shape[-1], shape[-2]).transpose(-1, -2)
    if layout == "strided":  # no unit stride anywhere
        return draw(*shape[:-1], 2 * shape[-1])[..., ::2]
    if layout == "offset":  # one element into its storage: loads are not aligned
        flat = draw(torch.Size(shape).numel() + 1)
        return flat[1:].view(shape)
    return draw(*shape)


_SHAPES = [
    Sample(f"{n}x{k}x{m}", (n,), k, m)
    for n in (1, 3, 28, 29, 257)
    for k, m in ((1, 1), (31, 33), (33, 31), (512, 512))
]
_WIDE = [Sample(f"{n}x{k}x{m}", (n,), k, m) for n in (1, 29) for k, m in ((512, 1024), (768, 512))]
# Small enough for gradcheck in double, and one of every kind of argument.
VARIANTS = [
    Sample("vector-bias", (5,), 6, 7, bias="vector"),
    Sample("row-bias", (5,), 6, 7, bias="row"),
    Sample("full-bias", (5,), 6, 7, bias="full"),
    Sample("scale", (5,), 6, 7, scale=2.5),
    Sample("negative-scale", (5,), 6, 7, scale=-0.5),
    Sample("not-normalized", (5,), 6, 7, normalize=False),
    Sample("not-normalized-scale-bias", (5,), 6, 7, bias="vector", normalize=False, scale=3.0),
    Sample("one-row-1d", (), 6, 7),
    Sample("one-row-1d-bias", (), 6, 7, bias="vector"),
    Sample("leading-dims", (2, 3), 6, 7),
    Sample("leading-dims-full-bias", (2, 3), 6, 7, bias="full"),
    Sample("sliced", (5,), 6, 7, layout="sliced"),
    Sample("sliced-3d", (2, 3), 6, 7, layout="sliced"),
    Sample("expanded", (5,), 6, 7, layout="expanded"),
    Sample("transposed", (5,), 6, 7, layout="transposed"),
    Sample("strided", (5,), 6, 7, layout="strided"),
    Sample("offset", (5,), 6, 7, layout="offset"),
    Sample("matrix-transposed", (5,), 6, 7, matrix_layout="transposed"),
    Sample("more-rows-than-a-tile", (17,), 6, 7, bias="full", scale=1.5),
]
# The same kinds at sizes that reach the block path, tails included.
_LARGER = [
    Sample("full-bias-61", (61,), 67, 70, bias="full", scale=2.5),
    Sample("vector-bias-61", (61,), 67, 70, bias="vector"),
    Sample("not-normalized-61", (61,), 67, 70, bias="row", normalize=False, scale=0.5),
    Sample("sliced-61", (61,), 67, 70, layout="sliced"),
    Sample("expanded-61", (61,), 67, 70, layout="expanded"),
    Sample("transposed-61", (61,), 67, 70, layout="transposed"),
    Sample("offset-61", (61,), 67, 70, layout="offset"),
    Sample("leading-4x5x3", (4, 5, 3), 33, 65, bias="full"),
]
FORWARD = _SHAPES + _WIDE + VARIANTS + _LARGER

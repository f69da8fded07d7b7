"""The calls that `calibrate` measures, on inputs like those of users."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from semobridge_ext._ops.blend_logits.op import BlendOperand
from semobridge_ext._ops.blend_logits.spec import BlendParams
from semobridge_ext._ops.blend_logits.takes import KERNELS as BLEND
from semobridge_ext._ops.project_normalize.op import project_normalize
from semobridge_ext._ops.project_normalize.prepared import PreparedProjection
from semobridge_ext._ops.project_normalize.takes import KERNELS as PROJECT
from semobridge_ext._ops.project_normalize.takes import PREPARED
from semobridge_ext._ops.support_logits.op import support_logits
from semobridge_ext._ops.support_logits.takes import KERNELS as SUPPORT
from semobridge_ext._ops.symmetric_kl.op import KERNELS as SYMMETRIC_KL
from semobridge_ext._ops.symmetric_kl.op import symmetric_kl
from semobridge_ext._ops.topk.op import topk
from semobridge_ext._ops.topk.takes import KERNELS as TOPK
from semobridge_ext.cli import calibration_loops
from semobridge_ext.runtime.calibration import TOLERANCE, Case


def cases(
    device: torch.device,
    sizes: Sequence[int] = (1, 32, 256, 4096, 65536),
    *,
    width: int,
    classes: int,
) -> Iterator[Case]:
    """Every operator and loop whose choice may be measured, by size and dtype; made one after another."""
    generator = torch.Generator().manual_seed(0)

    def unit(rows: int, dtype: torch.dtype = torch.float64) -> Tensor:
        x = torch.randn(rows, width, generator=generator)
        return torch.nn.functional.normalize(x, dim=1).to(device, dtype)

    matrix = torch.randn(width, width, generator=generator, dtype=torch.float64) * width**-0.5
    prepared = PreparedProjection(matrix)
    right = torch.linalg.qr(matrix)[0][:, : width * 3 // 4]
    text, bridged, raw = (unit(classes).cpu() for _ in range(3))
    exponents = torch.rand(classes, generator=generator, dtype=torch.float64)
    operand = BlendOperand(text, bridged, raw, exponents, right @ right.T, right)
    for dtype in TOLERANCE:
        single = matrix.to(device, dtype)
        for n in sizes:
            x = unit(n, dtype)
            yield Case(PREPARED, (x, single), partial(prepared, x))
            yield Case(PROJECT, (x, single), partial(project_normalize, x, single))
            a, b = 10 * x, 10 * x.roll(1, 1)
            yield Case(SYMMETRIC_KL, (a, b), partial(symmetric_kl, a, b))
            yield Case(BLEND, (x,), partial(operand.logits, x, BlendParams()))
        for n in sizes:
            queries, gallery = unit(256, dtype), unit(max(n, 16), dtype)
            own = (torch.arange(len(gallery)) % classes).to(device)
            logits = partial(support_logits, queries, gallery, own, classes, beta=5.5)
            yield Case(TOPK, (queries, gallery, 10), partial(_best_scores, queries, gallery))
            yield Case(SUPPORT, (queries, gallery), logits)
    yield from calibration_loops.cases(device, width, classes)


def _best_scores(queries: Tensor, gallery: Tensor) -> Tensor:
    return topk(queries, gallery, 10).scores

"""Calls of operators: our kernels from their own tiles, and what a user of PyTorch writes instead."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize

from on_paper.counting import counted
from on_paper.machine import RESIDENT, Launch, product
from on_paper.row import Row
from semobridge_ext._ops.blend_logits import cuda as blend_cuda
from semobridge_ext._ops.project_normalize import cuda as projection
from semobridge_ext._ops.topk import chunks
from semobridge_ext._ops.topk import cuda as topk_cuda
from semobridge_ext.runtime.multiprocessors import ASSUMED, parts_to_fill

PARTS = 2  # of a float32 matrix that meets rows of a half type
WARP, WARPS = 32, 4  # lanes; warps of a block
GROUP, MERGERS = topk_cuda.GROUP, 8  # scores that a warp of topk looks at at once; warps that merge lists
ENTERING = 6  # what the first scores of a list cost, in loads: k·ln entries of about 50 cycles each


def made(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def kept(moved: float) -> float:
    """Bytes that memory sees of what was just written and is read next."""
    return moved if moved > RESIDENT else 0.0


# -- the bridge --------------------------------------------------------------------------------------


def few_rows(n: int, width: int, size: int) -> Launch:
    """`project_normalize_fwd_kernel`: a warp for each column and eight rows."""
    blocks = math.ceil(width / WARPS) * math.ceil(n / 8)
    cache = blocks * WARPS * (4.0 * width + size * min(n, 8) * width) + 8.0 * n * width
    memory = 4.0 * width * width + 2.0 * size * n * width
    # The reads of a column, the fence and the ticket, two passes of the norm, the row's way out.
    trips = width / (WARP * 16 / size) + 7
    return Launch(
        "project_normalize_fwd_kernel", memory, cache, 2.0 * n * width * width, False, blocks, 8, trips
    )


def product_and_epilogue(n: int, width: int, size: int) -> list[Launch]:
    """Blocks of rows whose sums stay in L2: a product with both parts of the matrix, and the norm."""
    step, parts = projection.block_rows(width, size), PARTS if size == 2 else 1
    found = []
    for first in range(0, n, step):
        rows = min(step, n - first)
        x, sums = float(size * rows * width), 4.0 * rows * parts * width
        matrix = float(parts * size * width * width) if first == 0 else 0.0
        found += [
            product("mm", rows, width, parts * width, size=size, out_size=4, memory=matrix + x),
            Launch("normalize_rows_fwd_kernel", x, x + sums, blocks=math.ceil(rows / 8), resident=4, trips=6),
        ]
    return found


def bridge(n: int, width: int, dtype: torch.dtype) -> Row:
    size = dtype.itemsize
    ours = [few_rows(n, width, size)] if n <= projection.FEW else product_and_epilogue(n, width, size)

    def plain() -> None:
        normalize(made(n, width, dtype=dtype) @ made(width, width, dtype=dtype), dim=1)

    kind = str(dtype).removeprefix("torch.")
    return Row(f"bridge, N = {n}, D = {width}, {kind}", "one folded projector", ours, counted(plain))


# -- classes and neighbours --------------------------------------------------------------------------


def support_logits(n: int, s: int, classes: int, width: int) -> Row:
    """Triton: a program owns 128 queries, which stay, and a range of keys; an A100's hold 64."""
    down = math.ceil(n / 128)
    splits = parts_to_fill(down, max(1, s // 256), ASSUMED)
    # Keys come from memory once: the programs of one range, all blocks of queries, follow each other.
    memory = 2.0 * s * width + 8.0 * s + 2.0 * n * width + 4.0 * n * classes
    cache = down * (2.0 * width + 8) * s + splits * 2.0 * n * width + 32.0 * n * classes  # a sector a sum
    # The range, its first class, the queries, the first keys; and where a class ends, the end of the next.
    trips = 4 + math.ceil(classes / 1024) + classes / splits
    edges = 8.0 * splits * n
    ours = [
        Launch("fill", 4.0 * n * classes, 4.0 * n * classes),
        Launch("support_logits_fwd_kernel (Triton)", memory, cache, 2.0 * n * s * width,
               trips=trips, rate=0.7),
        Launch("support_logits_join_kernel (Triton)", 0.0, edges + 32.0 * n * splits, 0.0, False,
               down * (splits - 1), 8, trips=4),
    ]  # fmt: skip

    def plain() -> None:
        q, k = (made(rows, width, dtype=torch.float16) for rows in (n, s))
        values = made(s, classes, dtype=torch.float16)  # the one-hot labels, kept
        (5.5 * (q @ k.T - 1)).exp() @ values

    title = f"support_logits, {n} × {s}, C = {classes}, D = {width}, float16"
    return Row(title, "keys in class order", ours, counted(plain))


def topk(n: int, gallery: int, width: int, k: int) -> Row:
    """Products of chunks that stay in L2, and a filter with four loads of a lane on their way."""
    ours = []
    for block in chunks.blocks(n):
        rows = block.stop - block.start
        chunk = chunks.columns(rows, gallery)
        splits = topk_cuda.split_count(rows, chunk, torch.device("cpu"))
        for first in range(0, gallery, chunk):
            g = min(chunk, gallery - first)
            scores, read = 4.0 * rows * g, 2.0 * g * width
            ours += [
                product("mm", rows, width, g, out_size=4, memory=read + kept(scores)),
                Launch("topk_filter_kernel", kept(scores), scores + 16.0 * rows * splits * k, 0.0, False,
                       rows * splits / WARPS, 8, trips=math.ceil(g / splits / GROUP) + ENTERING),
            ]  # fmt: skip
        entries = 8.0 * rows * splits * k
        trips = math.ceil(splits * k / (MERGERS * GROUP / 4)) + ENTERING
        ours.append(Launch("topk_merge_kernel", 0.0, entries, 0.0, False, rows, 8, trips=trips))

    def plain() -> None:
        scores = made(n, width, dtype=torch.float16) @ made(gallery, width, dtype=torch.float16).T
        scores.topk(k)

    title = f"topk, {n} × {gallery}, D = {width}, k = {k}, float16"
    return Row(title, "cuBLAS and a filter", ours, counted(plain))


def predict(n: int, classes: int, width: int, rank: int) -> Row:
    """SeMoBridge's blend: [x | x] times both parts of all that the queries meet, and its epilogue."""
    cols = 3 * classes + rank
    ours = []
    step = max(1, blend_cuda._VALUES // cols)
    for first in range(0, n, step):
        rows = min(step, n - first)
        x, z = 2.0 * rows * width, 4.0 * rows * cols
        ours += [
            Launch("cat", x, (1 + PARTS) * x),
            product("mm", rows, PARTS * width, cols, out_size=4, memory=2.0 * PARTS * width * cols + kept(z)),
            Launch("blend_logits_fwd_kernel", kept(z), z + 2 * x, blocks=rows, resident=8, trips=12),
        ]
    half = torch.bfloat16

    def plain() -> None:
        f, p = made(n, width, dtype=half), made(width, width, dtype=half)
        texts, bridged, raw = (made(classes, width, dtype=half) for _ in range(3))
        unit, crossed = normalize(f, dim=1), normalize(f @ p, dim=1)
        shots = 0.5 * torch.exp(-2.0 * (1 - unit @ bridged.T)) + 0.5 * torch.exp(-3.0 * (1 - crossed @ raw.T))
        (torch.exp(-1.0 * (1 - unit @ texts.T)) + shots).argmax(1)

    title = f"predict, N = {n}, C = {classes}, D = {width}, bfloat16"
    return Row(title, "one product and its epilogue", ours, counted(plain))


def rows() -> list[Row]:
    return [
        *(bridge(n, 512, torch.bfloat16) for n in (1, 256, 65536)),
        predict(4096, 1000, 512, 384),
        support_logits(1024, 16_000, 1000, 512),
        support_logits(1024, 1_281_167, 1000, 512),
        topk(1, 1 << 20, 512, 10),
        topk(1000, 1 << 20, 512, 10),
    ]

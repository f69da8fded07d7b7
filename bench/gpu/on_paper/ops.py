"""Calls of operators: our kernels from their own tiles, and what a user of PyTorch writes instead."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize

from on_paper.counting import counted
from on_paper.machine import Launch, product, resident
from on_paper.row import Row
from semobridge_ext._ops.blend_logits import cuda as blend_cuda
from semobridge_ext._ops.project_normalize import cuda as projection
from semobridge_ext._ops.topk import chunks
from semobridge_ext._ops.topk import cuda as topk_cuda
from semobridge_ext.runtime import multiprocessors
from semobridge_ext.runtime.multiprocessors import parts_to_fill

PARTS = 2  # of a float32 matrix that meets rows of a half type
SINGLE_RATE = 0.2  # share of cuBLAS's rate that Triton's float32 products reach: assumed, several times less
WARP, WARPS = 32, 4  # lanes; warps of a block
GROUP, MERGERS = topk_cuda.GROUP, 8  # scores that a warp of topk looks at at once; warps that merge lists
ENTERING = 6  # what the first scores of a list cost, in loads: k·ln entries of about 50 cycles each


def made(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def kept(moved: float) -> float:
    """Bytes that memory sees of what was just written and is read next."""
    return moved if moved > resident() else 0.0


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


def product_and_epilogue(n: int, width: int, dtype: torch.dtype) -> list[Launch]:
    """Blocks of rows whose sums stay in L2: a product with both parts of the matrix, and the norm.

    Many rows of bfloat16 are scaled into float16 first, and meet one part.
    """
    size = dtype.itemsize
    scaled = projection.one_part(made(n, width, dtype=dtype), None, True)
    parts = PARTS if size == 2 and not scaled else 1
    step = projection.block_rows(4 * parts * width)
    found = []
    for first in range(0, n, step):
        rows = min(step, n - first)
        x, sums = float(size * rows * width), 4.0 * rows * parts * width
        matrix = float(parts * size * width * width) if first == 0 else 0.0
        blocks = math.ceil(rows / 8)
        copy = 0.0
        if scaled:
            copy = x if x + sums > resident() else 0.0  # of the rows, which the sums drive out
            found.append(Launch("scale_rows_fwd_kernel", x + copy, 2 * x, blocks=blocks, resident=8, trips=2))
        found += [
            product("mm", rows, width, parts * width, size=size, out_size=4,
                    memory=matrix + (copy if scaled else x)),
            Launch("normalize_rows_fwd_kernel", x, x + sums, blocks=blocks, resident=4, trips=6),
        ]  # fmt: skip
    return found


def projected(n: int, width: int, dtype: torch.dtype) -> list[Launch]:
    """A prepared projection by `backend("native")`."""
    few = n <= projection.FEW
    return [few_rows(n, width, dtype.itemsize)] if few else product_and_epilogue(n, width, dtype)


def bridge(n: int, width: int, dtype: torch.dtype) -> Row:
    def plain() -> None:
        normalize(made(n, width, dtype=dtype) @ made(width, width, dtype=dtype), dim=1)

    kind = str(dtype).removeprefix("torch.")
    title = f"bridge, N = {n}, D = {width}, {kind}"
    return Row(title, "one folded projector", projected(n, width, dtype), counted(plain))


# -- classes and neighbours --------------------------------------------------------------------------


def streamed_classes(
    n: int, s: int, classes: int, width: int, dtype: torch.dtype = torch.float16
) -> list[Launch]:
    """Triton: a program owns 128 queries, which stay, and a range of keys; an A100's hold 64.

    float32 keys meet queries that are read again with each of their blocks, outside of tensor cores.
    """
    size, half = dtype.itemsize, dtype.itemsize == 2
    down = math.ceil(n / (128 if half else 64))
    splits = parts_to_fill(down, max(1, s // 256), multiprocessors.ASSUMED)
    # Keys come from memory once: the programs of one range, all blocks of queries, follow each other.
    memory = size * s * width + 8.0 * s + size * n * width + 4.0 * n * classes
    again = splits if half else s / 32
    cache = down * (size * width + 8) * s + again * size * n * width + 32.0 * n * classes  # a sector a sum
    # The range, its first class, the queries, the first keys; and where a class ends, the end of the next.
    trips = 4 + math.ceil(classes / 1024) + classes / splits
    found = [
        Launch("fill", 4.0 * n * classes, 4.0 * n * classes),
        Launch("support_logits_fwd_kernel (Triton)", memory, cache, 2.0 * n * s * width, half,
               trips=trips, rate=0.7 if half else SINGLE_RATE),
    ]  # fmt: skip
    if splits > 1:
        edges = 8.0 * splits * n + 32.0 * n * splits
        found.append(Launch("support_logits_join_kernel (Triton)", 0.0, edges, 0.0, False,
                            down * (splits - 1), 8, trips=4))  # fmt: skip
    return found


def support_logits(n: int, s: int, classes: int, width: int) -> Row:
    ours = streamed_classes(n, s, classes, width)

    def plain() -> None:
        q, k = (made(rows, width, dtype=torch.float16) for rows in (n, s))
        values = made(s, classes, dtype=torch.float16)  # the one-hot labels, kept
        (5.5 * (q @ k.T - 1)).exp() @ values

    title = f"support_logits, {n} × {s}, C = {classes}, D = {width}, float16"
    return Row(title, "keys in class order", ours, counted(plain))


def searched(n: int, gallery: int, width: int, k: int, dtype: torch.dtype = torch.float16) -> list[Launch]:
    """Products of chunks that stay in L2, and a filter with four loads of a lane on their way."""
    found, size = [], dtype.itemsize
    for block in chunks.blocks(n):
        rows = block.stop - block.start
        chunk = chunks.columns(rows, gallery)
        splits = topk_cuda.split_count(rows, chunk, torch.device("cpu"))
        for first in range(0, gallery, chunk):
            g = min(chunk, gallery - first)
            scores, read = 4.0 * rows * g, float(size * g * width)
            found += [
                product("mm", rows, width, g, size=size, out_size=4, memory=read + kept(scores)),
                Launch("topk_filter_kernel", kept(scores), scores + 16.0 * rows * splits * k, 0.0, False,
                       rows * splits / WARPS, 8, trips=math.ceil(g / splits / GROUP) + ENTERING),
            ]  # fmt: skip
        entries = 8.0 * rows * splits * k
        trips = math.ceil(splits * k / (MERGERS * GROUP / 4)) + ENTERING
        found.append(Launch("topk_merge_kernel", 0.0, entries, 0.0, False, rows, 8, trips=trips))
    return found


def topk(n: int, gallery: int, width: int, k: int) -> Row:
    def plain() -> None:
        scores = made(n, width, dtype=torch.float16) @ made(gallery, width, dtype=torch.float16).T
        scores.topk(k)

    title = f"topk, {n} × {gallery}, D = {width}, k = {k}, float16"
    return Row(title, "cuBLAS and a filter", searched(n, gallery, width, k), counted(plain))


BLEND_LONG = 4096  # csrc/blend_logits/cuda.cu: columns from which a block has a row


def blend_epilogue(rows: int, classes: int, width: int, rank: int, size: int) -> Launch:
    """`blend_logits_fwd_kernel`: a warp for a row, a block for a long one; 16 bytes a lane where all fit."""
    cols = 3 * classes + rank
    block = max(cols, width) >= BLEND_LONG
    team, held = (256, 8) if block else (WARP, 16)
    even = classes % 4 == rank % 4 == 0 and width % (16 // size) == 0
    x, z = float(size * rows * width), 4.0 * rows * cols
    # Both norms' loads, again what a thread does not keep; four sums of a team; the classes; the label.
    again = 2.0 * sum(
        math.ceil(max(0, length - team * held) / (team * step))
        for length, step in ((width, 16 // size if even else 1), (rank, 4 if even else 1))
    )
    trips = 2 + again + (4 if block else 2) + math.ceil(classes / (team * (4 if even else 1))) + 1
    blocks = rows if block else math.ceil(rows / 8)
    return Launch("blend_logits_fwd_kernel", kept(z), z + x, blocks=blocks, resident=5, trips=trips)


def blended(n: int, classes: int, width: int, rank: int, dtype: torch.dtype) -> list[Launch]:
    """SeMoBridge's blend: [x | x], of a half type, times both parts of all that it meets; its epilogue."""
    cols, size = 3 * classes + rank, dtype.itemsize
    parts = PARTS if size == 2 else 1
    found = []
    step = max(1, blend_cuda._VALUES // cols)
    for first in range(0, n, step):
        rows = min(step, n - first)
        x, z = float(size * rows * width), 4.0 * rows * cols
        matrix = float(size * parts * width * cols)
        found += [
            *([Launch("cat", x, (1 + PARTS) * x)] if parts > 1 else []),
            product("mm", rows, parts * width, cols, size=size, out_size=4, memory=matrix + kept(z)),
            blend_epilogue(rows, classes, width, rank, size),
        ]
    return found


def predict(n: int, classes: int, width: int, rank: int) -> Row:
    half = torch.bfloat16

    def plain() -> None:
        f, p = made(n, width, dtype=half), made(width, width, dtype=half)
        texts, bridged, raw = (made(classes, width, dtype=half) for _ in range(3))
        unit, crossed = normalize(f, dim=1), normalize(f @ p, dim=1)
        shots = 0.5 * torch.exp(-2.0 * (1 - unit @ bridged.T)) + 0.5 * torch.exp(-3.0 * (1 - crossed @ raw.T))
        (torch.exp(-1.0 * (1 - unit @ texts.T)) + shots).argmax(1)

    title = f"predict, N = {n}, C = {classes}, D = {width}, bfloat16"
    ours = blended(n, classes, width, rank, half)
    return Row(title, "one product and its epilogue", ours, counted(plain))


def rows() -> list[Row]:
    return [
        *(bridge(n, 512, torch.bfloat16) for n in (1, 256, 65536)),
        bridge(65536, 512, torch.float16),
        predict(4096, 1000, 512, 384),
        support_logits(1024, 16_000, 1000, 512),
        support_logits(1024, 1_281_167, 1000, 512),
        topk(1, 1 << 20, 512, 10),
        topk(1000, 1 << 20, 512, 10),
    ]

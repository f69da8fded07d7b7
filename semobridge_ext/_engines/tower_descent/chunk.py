"""How many samples a step takes at once on a GPU: enough rows to fill it, as far as memory goes.

Up to some thousands of rows a step costs about the same, because it is bound by launches and by reading
the weights. More rows take proportionally longer and only make a chunk larger, which is what a kill loses.

Letters as in spec.py; n slots, P prefix rows.
"""

from __future__ import annotations

import torch

from semobridge_ext._engines.tower_descent.spec import LearnedRows, Tower, slots_of

MOST = 4096  # samples; beyond, a step takes twice as long for twice the samples
ROWS = 16384  # of all slots: 4096 samples of a text of four slots, 256 of fifty patches
LEAST = 32  # samples, whatever the memory: less than that and a GPU idles
_SHARE = 0.5  # of the free memory: two batch sizes keep their buffers, and cuBLAS needs some


def sample_bytes(tower: Tower, rows: LearnedRows, stored: torch.dtype, *, kernels: bool) -> int:
    """What one sample adds to the buffers of a step (buffers.py), rounded up.

    Args:
        tower, rows: on any device.
        stored: dtype of the activations.
        kernels: the pieces of cuda.py; else those of torch.py, which keep normed rows and copied heads.
    """
    slots = slots_of(tower, rows)
    n, keys, width = len(slots.order), slots.prefix + len(slots.order), tower.width
    hidden = max(block.fc.weight.shape[1] for block in tower.blocks)
    size, wide = stored.itemsize, tower.compute.itemsize
    layers = len(tower.blocks)
    layer = n * (5 * width + hidden) * size  # x, qkv, the row between, the hidden row
    if kernels:
        layer += n * (4 + tower.heads) * wide  # statistics of the norms and of the softmax
    else:
        layer += 2 * n * (width + 1) * wide  # normed rows
        layer += (n * width + 2 * keys * width + tower.heads * n * keys) * size  # heads, probabilities
    shared = n * (12 * width + 2 * hidden) * size  # the input, gradients, and scratch between two products
    if not kernels:
        shared += 2 * n * (width + 1) * wide + (3 * n * width + 2 * tower.heads * n * keys) * size
    ends = (4 * tower.features + 5 * rows.vectors * width + 64) * wide + 3 * width * size
    return layers * layer + shared + ends


def chunk_samples(sample: int, slots: int, free: int) -> int:
    """Samples of a chunk: 4096, or as many as fit; a power of two, so that free memory changes it seldom.

    Args:
        sample: bytes, of :func:`sample_bytes`.
        slots: rows of a sample that a step computes.
        free: bytes of memory that are free on the device.
    """
    fit = min(MOST, ROWS // max(slots, 1), int(_SHARE * free) // max(sample, 1))
    return max(LEAST, 1 << max(fit, 1).bit_length() - 1)


def free_memory(device: torch.device) -> int:
    """Bytes that a CUDA device could still give, PyTorch's own reserve included."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)

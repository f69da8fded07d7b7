"""Which rows belong to which class: a stable order of labels, made on the labels' device."""

from __future__ import annotations

from typing import NamedTuple, NoReturn

import torch
from torch import Tensor

from semobridge_ext import _errors
from semobridge_ext._ops.support_logits import cpu
from semobridge_ext.runtime.backend import _C


class ClassOrder(NamedTuple):
    """Keys in class order, made once by `sort_by_class`."""

    order: Tensor | None  # [S] int64; None: the keys lie in class order
    offsets: Tensor  # [C + 1] int64


def sort_by_class(labels: Tensor, num_classes: int, function: str) -> ClassOrder:
    """Stable class order of the labels; an out-of-range label is named with its position.

    On a GPU that check waits for the device, once; not inside the capture of a CUDA graph, which may
    not: there rows with such labels belong to no class.
    """
    if _C is None or not labels.is_cpu:
        order, offsets, in_order = class_order(labels, num_classes)
        capturing = labels.is_cuda and torch.cuda.is_current_stream_capturing()
        if labels.numel() and not capturing:
            outside = (in_order[0] < 0) | (in_order[-1] >= num_classes)
            if bool(outside):
                bad = (labels < 0) | (labels >= num_classes)
                refuse_label(function, labels, int(bad.nonzero()[0]), num_classes)
        return ClassOrder(order, offsets)
    order, offsets, foreign = cpu.sort_labels(labels, num_classes)
    if foreign >= 0:
        refuse_label(function, labels, foreign, num_classes)
    return ClassOrder(order, offsets)


def class_order(labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Order [S], offsets [C + 1] and the labels in order, by PyTorch on any device, unchecked.

    Nothing is read back. A label out of range lies before the first or after the last offset.
    """
    in_order, order = torch.sort(labels, stable=True)
    bounds = torch.arange(num_classes + 1, device=labels.device)
    return order, torch.searchsorted(in_order, bounds), in_order


def refuse_label(function: str, labels: Tensor, position: int, num_classes: int) -> NoReturn:
    """Names the label at a position; what it says there may have changed since."""
    contract = f"lie in 0..{num_classes - 1}"
    got = f"{int(labels[position])} at position {position}"
    remedy = f"num_classes={num_classes} counts the classes; renumber the labels from 0"
    raise ValueError(_errors.message(function, "labels", contract, got, remedy))

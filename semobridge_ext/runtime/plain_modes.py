"""The modes of torch that a caller may have set, and that must not reach what a method computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


@contextmanager
def plain_modes() -> Iterator[None]:
    """Without the caller's inference mode, autocast and default device; also a decorator.

    A training needs autograd, which inference mode takes away for good; products of 8 bits change what is
    learned; and a default device takes what stands on no device by itself. Whether gradients are wanted
    stays as it was.
    """
    gradients = torch.is_grad_enabled()
    with ExitStack() as modes:
        if torch.is_inference_mode_enabled():
            modes.enter_context(torch.inference_mode(False))
            modes.enter_context(torch.set_grad_enabled(gradients))  # the line before turned them on
        modes.enter_context(torch.autocast("cpu", enabled=False))
        if torch.cuda.is_available():
            modes.enter_context(torch.autocast("cuda", enabled=False))
        modes.enter_context(plain_device())
        yield


@contextmanager
def plain_device() -> Iterator[None]:
    """Without the caller's default device alone; also a decorator, where autocast is his to set.

    What holds features says its device by itself; counts, orders and tables on the way do not.
    """
    if torch.get_default_device().type == "cpu":
        yield
    else:
        with torch.device("cpu"):
            yield

"""Triton kernels and how they are launched; imported only where Triton runs.

Which tile a kernel runs with is measured once per device and shape where that can be done, else fixed.

`triton.autotune` measures a short list at a kernel's first call with a shape bucket, dtypes and compile-time
constants, and keeps the choice in Triton's cache folder, so that the next process need not measure. It is not
measured in the interpreter, in ahead-of-time compilation and with SEMOBRIDGE_TRITON_AUTOTUNE=0. While a CUDA
graph is captured nothing can be timed, and the tuner is not asked: a tile that was tuned before serves, else
the fixed one. (Triton 3.6's tuner times even a single tile, which breaks the capture, and 3.8's would keep
that tile for good.) Configurations that the device's shared memory or a thread's registers cannot hold are
left out. A self-check takes the fixed tile, as it is to cost less than a measurement.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import triton
from torch import Tensor
from torch.library import wrap_triton

from semobridge_ext.runtime import self_check as _self_check

Arguments = Mapping[str, Any]
SMALLEST_SHARED = 99 << 10  # of a block on the architectures with the least (sm_86, 89, 120)


def config(warps: int, stages: int, **blocks: int) -> triton.Config:
    return triton.Config(blocks, num_warps=warps, num_stages=stages)


def shared_limit() -> int:
    """Bytes of shared memory that a block may have on the current device."""
    if not torch.cuda.is_available():
        return SMALLEST_SHARED
    properties: Any = torch.cuda.get_device_properties(torch.cuda.current_device())
    return int(properties.shared_memory_per_block_optin)


def is_traced(tensor: Tensor) -> bool:
    """Under torch.compile and its kind: the launch becomes part of a graph."""
    return type(tensor) not in (Tensor, torch.nn.Parameter)


def bucket(like: Tensor, *sizes: int) -> int:
    """Sizes up to the power of two above them, as one number: the tuner's key."""
    if is_traced(like):
        return 0  # sizes may be symbols there, and the compiler tunes by itself
    key = 0
    for size in sizes:
        key = key << 6 | max(size - 1, 0).bit_length()
    return key


def _capturing() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


skipped: list[str] = []  # tiles of which the tuner found that they cannot run here, in words


def _constants(function: Any) -> list[str]:
    """The compile-time constants of a kernel, by name."""
    return [p.name for p in getattr(function, "params", ()) if p.is_constexpr]


def interpreted(tensor: Tensor) -> bool:
    """True where Triton's interpreter runs the kernels (CPU tensors).

    Triton 3.8's interpreter multiplies the bits of bfloat16 as integers; the kernels widen for it. The
    products are the same: those of half types are exact in float32.
    """
    return not tensor.is_cuda


def product_of(a: Tensor, b: Tensor) -> tuple[bool, str]:
    """Whether a product's operands are widened to float32, and the precision of that product.

    Two half types multiply exactly on tensor cores: as they are, or, if they differ, as TF32.
    """
    if a.dtype is b.dtype:
        return interpreted(a), "ieee"
    return True, "ieee" if torch.float32 in (a.dtype, b.dtype) else "tf32"


class Kernel:
    """A kernel, the configuration that is taken unmeasured, and the list that a GPU measures.

    Args:
        function: of ``triton.jit``, with an argument ``bucket`` if there is a list.
        configs: the list; empty: never measured.
        fixed: the unmeasured choice for a call's arguments.
        fits: (configuration, arguments) -> whether it is meant for such a call.
        shared: (configuration, arguments) -> an upper bound of its shared memory, where that may pass
            SMALLEST_SHARED.
    """

    def __init__(
        self,
        function: Any,
        configs: Sequence[triton.Config],
        fixed: Callable[[Arguments], triton.Config],
        fits: Callable[[triton.Config, Arguments], bool] = lambda *_: True,
        shared: Callable[[triton.Config, Arguments], int] = lambda *_: 0,
    ) -> None:
        self.function, self.configs, self.fixed = function, list(configs), fixed
        self.fits, self.shared = fits, shared
        self.tuner = function
        self.tuned: dict[Hashable, triton.Config] = {}  # what the tuner took, by `_key`
        # What a program is compiled for decides its fastest tile too.
        given = {name for c in self.configs for name in c.kwargs}
        self.keys = ["bucket", *(name for name in _constants(function) if name not in given)]
        if self.configs:
            self.tuner = self._new_tuner()
        self._tuners: dict[torch.device, Any] = {}

    def _new_tuner(self) -> Any:
        prune = {"early_config_prune": self.prune}
        tune = triton.autotune(self.configs, self.keys, prune_configs_by=prune, cache_results=True)
        return tune(self.function)

    def tuner_of(self, device: torch.device) -> Any:
        """The device's own: Triton's key holds no device, and what fits the first need not fit another."""
        if device not in self._tuners:
            self._tuners[device] = self._new_tuner() if self._tuners else self.tuner
        return self._tuners[device]

    def usable(self, arguments: Arguments, limit: int) -> list[triton.Config]:
        """What may be tried on a device whose blocks may have that many bytes of shared memory."""
        return [c for c in self.configs if self.fits(c, arguments) and self.shared(c, arguments) <= limit]

    def unmeasured(self, arguments: Arguments, limit: int) -> triton.Config:
        """The fixed choice, or the first usable one where a device is too small for it."""
        fixed = self.fixed(arguments)
        if self.shared(fixed, arguments) <= limit:
            return fixed
        return next(iter(self.usable(arguments, limit)), fixed)

    def prune(self, configs: Sequence[triton.Config], named: Arguments, **constants: Any) -> list:
        arguments, limit = {**named, **constants}, shared_limit()
        # One that is left alone is taken without a measurement.
        return self.usable(arguments, limit) or [self.unmeasured(arguments, limit)]

    def _key(self, device: torch.device, arguments: Arguments) -> Hashable:
        """What the tuner tells calls apart by."""
        dtypes = (x.dtype for x in arguments.values() if isinstance(x, Tensor))
        return device, *(arguments.get(name) for name in self.keys), *dtypes

    def _note(self, key: Hashable, tuner: Any) -> None:
        """Keeps what the tuner took for a call, and what it had to skip."""
        self.tuned[key] = tuner.best_config
        timings = getattr(tuner, "configs_timings", None) or {}
        for tile, seconds in timings.items():
            least = seconds[0] if isinstance(seconds, (list, tuple)) else seconds
            line = f"{self.function.__name__}: a tile was skipped, it does not compile or fit here: {tile}"
            if least == float("inf") and line not in skipped:
                skipped.append(line)

    def launch(self, like: Tensor, grid: Callable[[Arguments], tuple], *args: Any, **constants: Any) -> None:
        """Runs on the current stream of ``like``'s device; ``grid`` sees the tile."""
        if is_traced(like) and not like.is_cuda:
            return  # the interpreter leaves nothing in a graph: such an operator stays whole
        with torch.cuda.device(like.device) if like.is_cuda and not is_traced(like) else nullcontext():
            self._launch(like, grid, args, constants)

    def _launch(
        self,
        like: Tensor,
        grid: Callable[[Arguments], tuple],
        args: tuple[Any, ...],
        constants: dict[str, Any],
    ) -> None:
        """On the current device: how much shared memory there is, and whether it is captured, is its own."""
        arguments = {**dict(zip(self.function.arg_names, args, strict=False)), **constants}
        tunes = like.is_cuda and self.configs and os.environ.get("SEMOBRIDGE_TRITON_AUTOTUNE") != "0"
        measured = tunes and not _capturing() and not _self_check.running.get()
        key = self._key(like.device, arguments) if tunes and not is_traced(like) else None
        if not measured:
            chosen = self.tuned.get(key)
            if chosen is None:
                chosen = self.unmeasured(arguments, shared_limit() if like.is_cuda else 1 << 30)
            constants |= {**chosen.kwargs, "num_warps": chosen.num_warps, "num_stages": chosen.num_stages}
        if is_traced(like):
            wrap_triton(self.tuner if measured else self.function)[grid](*args, **constants)
            return
        kernel = self.tuner_of(like.device) if measured else self.function
        kernel[grid](*args, **constants)
        if measured and key not in self.tuned:
            self._note(key, kernel)

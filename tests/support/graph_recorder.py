"""A CUDA graph's contract without a GPU: the launches of a step, recorded and repeated as they were.

`Recorder().capture` stands in for `capture_cuda`. A replay repeats every operator and every call
of the native module with the same tensors, addresses and host numbers, so a Python number that should
have changed between steps shows as a wrong result. What no graph may hold is refused while recording:
reading a value back to the host and, with `no_allocation`, allocating.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

READS = ("item", "_local_scalar_dense", "is_nonzero", "nonzero", "equal")
ALLOCATES = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")  # and write nothing


class Recorded:
    """The native module with its calls on record."""

    def __init__(self, module: Any, recorder: Recorder) -> None:
        self._module, self._recorder = module, recorder

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._module, name)
        if not callable(function) or not name.endswith("_cuda"):
            return function

        def call(*args: Any) -> Any:
            result = function(*args)
            if self._recorder.calls is not None:
                self._recorder.calls.append((name, lambda: function(*args)))
            return result

        return call


class Recorder(TorchDispatchMode):
    """Records one step; `launches` names what a replay repeats."""

    def __init__(self, *, no_allocation: bool = True) -> None:
        super().__init__()
        self.no_allocation = no_allocation
        self.calls: list[tuple[str, Callable[[], object]]] | None = None
        self.launches: list[str] = []
        self.replays = 0

    def native(self, module: Any) -> Recorded:
        return Recorded(module, self)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.split("::")[1]
        assert name not in READS, f"a captured step reads a value back: {func}"
        out = func(*args, **kwargs)
        if any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns):
            return out  # a view
        writes = any(a.alias_info is not None and a.alias_info.is_write for a in func._schema.arguments)
        assert writes or not self.no_allocation, f"a captured step allocates: {func}"
        assert self.calls is not None
        if writes:
            self.calls.append((name, lambda: func(*args, **kwargs)))
            return out
        results = [t for t in tree_leaves(out) if isinstance(t, Tensor)]

        def again() -> None:
            fresh = [t for t in tree_leaves(func(*args, **kwargs)) if isinstance(t, Tensor)]
            for kept, new in zip(results, fresh, strict=True):
                kept.copy_(new)

        if name not in ALLOCATES:
            self.calls.append((name, again))
        return out

    def capture(self, step: Callable[[], None], device: torch.device) -> Callable[[], None]:
        self.calls = recorded = []
        with self:
            step()
        self.calls = None
        self.launches = [name for name, _ in recorded]

        def replay() -> None:
            self.replays += 1
            for _, call in recorded:
                call()

        return replay

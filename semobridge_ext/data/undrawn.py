"""Modules built without drawing initial values, where all of them are overwritten at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

_DRAW = (Tensor.normal_, Tensor.uniform_)


class Undrawn(TorchFunctionMode):
    """Within it, `torch.nn.init` and in-place draws leave a tensor as it was allocated.

    Drawing what is not kept takes half of the time in which a small CLIP is loaded. What a module
    computes, such as a causal mask, comes out as ever; on the meta device it would have to be made again.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _DRAW or getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)

"""The error contract in one place: `<function>: <argument> must <contract>, got <value>; <remedy>`."""

from __future__ import annotations

from typing import Any

import torch

FLOAT_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_NAMES = "float32, float64, bfloat16 or float16"


def describe(value: Any) -> str:
    """Names a value in an error: kind, and for a tensor its shape, dtype and device."""
    if isinstance(value, torch.Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
        return f"a {dtype} tensor of shape {list(value.shape)} on {value.device}"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 80 else text[:77] + '...'}"


def message(function: str, argument: str, contract: str, value: Any, remedy: str) -> str:
    got = value if isinstance(value, str) else describe(value)
    return f"{function}: {argument} must {contract}, got {got}; {remedy}"


def check_float_tensor(function: str, argument: str, value: Any) -> torch.Tensor:
    """A dense tensor of one of the four float dtypes, or TypeError."""
    if not isinstance(value, torch.Tensor):
        remedy = "wrap it with torch.as_tensor(...)"
        raise TypeError(message(function, argument, "be a torch.Tensor", value, remedy))
    if value.dtype not in FLOAT_DTYPES:
        remedy = "convert it with .float()"
        raise TypeError(message(function, argument, f"be {_NAMES}", value, remedy))
    if value.layout is not torch.strided:
        remedy = "convert it with .to_dense()"
        raise TypeError(message(function, argument, "be a dense tensor", value, remedy))
    return value


def check_last_dim(function: str, argument: str, value: torch.Tensor, width: int, why: str) -> None:
    if value.dim() == 0 or value.shape[-1] != width:
        remedy = f"{why}; check that the features come from that model"
        raise ValueError(message(function, argument, f"have width {width}", value, remedy))


def check_same_device(function: str, argument: str, value: torch.Tensor, device: torch.device) -> None:
    if value.device != device:
        remedy = f"move one of them, for example {argument}.to('{device}')"
        raise ValueError(message(function, argument, f"be on {device}", value, remedy))


def check_finite(function: str, argument: str, value: torch.Tensor, remedy: str) -> None:
    finite = torch.isfinite(value)
    if not bool(finite.all()):
        bad = int((~finite).sum())
        got = f"{bad} non-finite of {value.numel()} values"
        raise ValueError(message(function, argument, "be finite", got, remedy))

"""The error contract in one place: `<function>: <argument> must <contract>, got <value>; <remedy>`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

FLOAT_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_NAMES = "float32, float64, bfloat16 or float16"


def describe(value: Any) -> str:
    """Names a value in an error: kind, and for a tensor its shape, dtype and device."""
    if isinstance(value, torch.Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
        if value.is_nested:  # it has no shape, and one of its layouts says so by an internal error
            return f"a nested {dtype} tensor on {value.device}"
        return f"a {dtype} tensor of shape {list(value.shape)} on {value.device}"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 80 else text[:77] + '...'}"


def message(function: str, argument: str, contract: str, value: Any, remedy: str) -> str:
    got = value if isinstance(value, str) else describe(value)
    return f"{function}: {argument} must {contract}, got {got}; {remedy}"


@contextmanager
def naming(path: Any) -> Iterator[None]:
    """What the system refuses names the path: errors of open files name none, others a hidden file."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


def check_float_tensor(function: str, argument: str, value: Any) -> torch.Tensor:
    """A dense tensor of one of the four float dtypes, or TypeError."""
    if not isinstance(value, torch.Tensor):
        remedy = "wrap it with torch.as_tensor(...)"
        if fields := getattr(value, "_fields", None):  # a result with several parts, given whole
            raise TypeError(whole_result(function, argument, value, fields))
        raise TypeError(message(function, argument, "be a torch.Tensor", describe(value), remedy))
    if value.dtype not in FLOAT_DTYPES:
        remedy = "convert it with .float()"
        raise TypeError(message(function, argument, f"be {_NAMES}", value, remedy))
    if value.is_nested:
        remedy = "pad it with torch.nested.to_padded_tensor(...), or join its parts with torch.cat"
        raise TypeError(message(function, argument, "be a dense tensor", value, remedy))
    if value.layout is not torch.strided:
        remedy = "convert it with .to_dense()"
        raise TypeError(message(function, argument, "be a dense tensor", value, remedy))
    check_memory(function, argument, value)
    return value


def is_dense(value: Any) -> bool:
    """Whether it is a tensor with a shape and strides: no nested one, no sparse one."""
    return isinstance(value, torch.Tensor) and not value.is_nested and value.layout is torch.strided


def whole_result(function: str, argument: str, value: Any, fields: Any) -> str:
    """What an error says of a named tuple in the place of one of its parts."""
    got = f"a whole {type(value).__name__}"
    return message(function, argument, "be one tensor", got, f"pass one of its parts: .{', .'.join(fields)}")


def check_values(function: str, argument: str, value: torch.Tensor) -> None:
    """Refuses a meta tensor where its values are asked for."""
    if value.is_meta:
        remedy = "load the weights, or make it on a device that holds them"
        raise ValueError(message(function, argument, "hold values", value, remedy))


_ORDINARY = (torch.Tensor, torch.nn.Parameter)


def check_memory(function: str, argument: str, value: torch.Tensor) -> None:
    """Refuses a tensor whose storage was freed under it, as sharding frees a parameter's."""
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return
    if type(value) not in _ORDINARY or value.is_meta or value.numel() == 0:
        return
    try:
        freed = value.data_ptr() == 0 and not value._is_zerotensor()
    except RuntimeError:  # wrapped by a function transform
        return
    if freed:
        got = f"{describe(value)} whose storage was freed"
        remedy = "gather it first (with FSDP inside summon_full_params)"
        raise ValueError(message(function, argument, "hold its values in memory", got, remedy))


def check_last_dim(function: str, argument: str, value: torch.Tensor, width: int, why: str) -> None:
    if value.dim() == 0 or value.shape[-1] != width:
        remedy = f"{why}; check that the features come from that model"
        raise ValueError(message(function, argument, f"have width {width}", value, remedy))


def check_same_device(function: str, argument: str, value: torch.Tensor, device: torch.device) -> None:
    if value.device != device:
        remedy = f"move one of them, for example {argument}.to('{device}')"
        raise ValueError(message(function, argument, f"be on {device}", value, remedy))


def rows_with(
    rows: torch.Tensor, test: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:  # [N, D] -> [n] int64
    """The rows where a test, false of finite values, is true anywhere; block by block, for mapped files."""
    block = max(1, (1 << 22) // max(rows.shape[1], 1))
    wide = torch.float64 if rows.dtype is torch.float64 else torch.float32
    found = []
    for i in range(0, len(rows), block):
        part = rows[i : i + block]
        # Whoever holds NaN or infinity has no finite sum: one pass, and nothing of the part's size.
        open_rows = (~torch.isfinite(part.sum(dim=1, dtype=wide))).nonzero().flatten()
        if len(open_rows):
            found.append(open_rows[test(part[open_rows]).any(dim=1)].cpu() + i)
    return torch.cat(found) if found else torch.empty(0, dtype=torch.int64)


def check_rows(function: str, argument: str, rows: torch.Tensor, remedy: str, *, infinite: bool) -> None:
    """Refuses NaN, and unless ``infinite`` infinity, in a [N, D] tensor; names the rows."""
    check_values(function, argument, rows)
    bad = rows_with(rows, torch.isnan if infinite else lambda part: ~torch.isfinite(part))
    if len(bad):
        listed = ", ".join(map(str, bad[:5].tolist())) + (", ..." if len(bad) > 5 else "")
        kind = "NaN" if infinite else "NaN or infinity"
        got = f"{kind} in {len(bad)} of {len(rows)} rows ({listed})"
        contract = "hold no NaN" if infinite else "be finite"
        raise ValueError(message(function, argument, contract, got, remedy))


def check_finite(function: str, argument: str, value: torch.Tensor, remedy: str) -> None:
    check_values(function, argument, value)
    finite = torch.isfinite(value)
    if not bool(finite.all()):
        bad = int((~finite).sum())
        got = f"{bad} non-finite of {value.numel()} values"
        raise ValueError(message(function, argument, "be finite", got, remedy))

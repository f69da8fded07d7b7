"""What a saved file must hold before anything computes with it: names, shapes, dtypes, finite values.

The core takes shapes on trust, so a loader checks all of them against each other. Whatever is wrong with a
file is a ValueError that names it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from semobridge_ext import _checksum, _errors, _files

FLOATS = _errors.FLOAT_DTYPES
WHOLE = (torch.int64,)
SUMS = (torch.float32, torch.float64)  # of what the core reads as it is: its sums' dtypes


class Field(NamedTuple):
    """One tensor of a file.

    Args:
        axes: of its shape, letters that stand for one size in all fields, or numbers.
        dtypes: any of these.
        finite: NaN and infinity are refused.
        bound: int64 values lie in 0..(size of this letter) − 1.
        optional: the file may lack it.
        streamed: no checksum is compared in a file that is mapped; with finite=False, as values that are
            looked at are read anyway.
    """

    axes: tuple[str | int, ...]
    dtypes: tuple[torch.dtype, ...] = FLOATS
    finite: bool = True
    bound: str = ""
    optional: bool = False
    streamed: bool = False


Schema = Mapping[str, Field]


def load(
    function: str,
    path: Any,
    file_format: str | tuple[str, ...],
    schema: Schema,
    fields: tuple[str, ...] = (),
    sizes: dict[str, int] | None = None,
    remedy: str = _files.WRITE_IT,
    damaged: str = _checksum.COPY_IT,
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a schema, checked, and the metadata of a file.

    Args:
        function: the public loader, for messages. path, file_format, fields, remedy, damaged:
            as `_files.load_tensors`.
        schema: what is read; optional fields are read where the file has them.
        sizes: of letters that are known already; the others are added to it.
    """
    needed = tuple(name for name, field in schema.items() if not field.optional)
    optional = tuple(name for name, field in schema.items() if field.optional)
    streamed = tuple(name for name, field in schema.items() if field.streamed)
    tensors, meta = _files.load_tensors(
        function, path, file_format, needed, fields, remedy,
        optional=optional, streamed=streamed, damaged=damaged,
    )  # fmt: skip
    check(function, path, tensors, schema, {} if sizes is None else sizes)
    return tensors, meta


def names(path: Any) -> set[str]:
    """Of the tensors in a file."""
    from safetensors import safe_open

    with safe_open(_files.place(path), framework="pt") as file:
        return set(file.keys())


def check(
    function: str, path: Any, tensors: Mapping[str, Tensor], schema: Schema, sizes: dict[str, int]
) -> None:
    """Raises a ValueError for the first tensor that is not as its field says; fills in the sizes."""
    for name, value in tensors.items():
        field = schema[name]
        if value.dtype not in field.dtypes:
            kinds = " or ".join(str(d).removeprefix("torch.") for d in field.dtypes)
            raise _wrong(function, path, name, f"as {kinds}", value)
        known = [sizes.get(a) if isinstance(a, str) else a for a in field.axes]
        fits = value.dim() == len(known)
        if not fits or any(k not in (None, size) for k, size in zip(known, value.shape, strict=True)):
            shape = [a if k is None else k for a, k in zip(field.axes, known, strict=True)]
            raise _wrong(function, path, name, f"of shape [{', '.join(map(str, shape))}]", value)
        sizes.update({a: s for a, s in zip(field.axes, value.shape, strict=True) if isinstance(a, str)})
        if field.finite and value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise _wrong(function, path, name, "with finite values", "NaN or infinity")
    for name, value in tensors.items():
        bound = schema[name].bound
        if bound and value.numel() and not 0 <= int(value.min()) <= int(value.max()) < sizes[bound]:
            got = f"{int(value.min())}..{int(value.max())}"
            raise _wrong(function, path, name, f"with values in 0..{sizes[bound] - 1}", got)


def _wrong(function: str, path: Any, name: str, contract: str, value: Any) -> ValueError:
    got = value if isinstance(value, str) else _errors.describe(value)
    return ValueError(
        f"{function}: {path} must hold {name!r} {contract}, got {got}; take the file as .save() wrote it"
    )


def need(function: str, path: Any, fact: bool, what: str, got: Any) -> None:
    """Raises a ValueError unless a fact about a file holds; `what` it must hold, in words."""
    if not fact:
        raise ValueError(
            f"{function}: {path} must hold {what}, got {_errors.describe(got)}; "
            "take the file as .save() wrote it"
        )


def number(function: str, path: Any, name: str, value: Any, least: float = -math.inf) -> float:
    """A finite number of at least `least`, from a file's metadata."""
    known = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    floor = "" if least == -math.inf else f" ≥ {least:g}"
    need(function, path, known and value >= least, f"a finite number{floor} as {name}", value)
    return float(value)


@contextmanager
def restoring(function: str, path: Any) -> Iterator[None]:
    """Turns whatever goes wrong with what a file says into one ValueError that names the file."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        if isinstance(error, ValueError) and str(error).startswith(f"{function}: {path}"):
            raise
        raise ValueError(
            f"{function}: {path} must hold what .save() writes, got {type(error).__name__}: {error}; "
            "take the file as .save() wrote it"
        ) from error

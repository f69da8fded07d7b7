"""Labels of several findings per image, 0, 1 or not known, and the findings' names."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from semobridge_ext import _errors, _inputs, _numbers

UNKNOWN = -1
_UNSIGNED = (torch.uint8, torch.uint16, torch.uint32, torch.uint64)


def label_codes(where: str, name: str, Y: Any) -> Tensor:  # [N, L] int8 on the CPU: 0, 1, −1 not known
    """Labels of any kind of number; NaN and −1 are not known."""
    if not isinstance(Y, Tensor):
        array = _inputs.array_of(where, name, Y)
        if array.dtype.kind not in "biuf":
            remedy = "write 0, 1, and NaN or −1 for what is not known"
            raise TypeError(_errors.message(where, name, "hold numbers", f"{array.dtype} values", remedy))
        Y = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float64))
    if Y.is_nested or Y.layout is not torch.strided or Y.is_complex():
        remedy = "pass one column per finding, of 0, 1 and −1"
        raise TypeError(_errors.message(where, name, "be a dense tensor of real numbers", Y, remedy))
    _errors.check_values(where, name, Y)
    y = Y.detach().cpu()
    y = y.to(torch.int64) if y.dtype in _UNSIGNED else y  # where −1 would be their largest number
    if y.dim() != 2 or y.shape[1] == 0:
        remedy = "pass one column per finding; a single one is Y.reshape(-1, 1)"
        raise ValueError(_errors.message(where, name, "be [N, L]", y, remedy))
    if y.is_floating_point():
        y = torch.where(torch.isnan(y), float(UNKNOWN), y)
    wrong = (y != 0) & (y != 1) & (y != UNKNOWN)
    if bool(wrong.any()):
        row, column = wrong.nonzero()[0].tolist()
        got = f"{y[row, column].item():g} in row {row}, column {column}"
        remedy = "NaN or −1 mark a label that is not known"
        raise ValueError(_errors.message(where, name, "hold 0, 1, NaN or −1", got, remedy))
    return y.to(torch.int8)


def hide(where: str, codes: Tensor, known: Any) -> Tensor:
    """The labels where the mask is true, −1 elsewhere."""
    if known is None:
        return codes
    if isinstance(known, Tensor):
        _errors.check_values(where, "known", known)
    mask = known if isinstance(known, Tensor) else _inputs.array_of(where, "known", known)
    if mask.dtype in (np.bool_, bool):
        mask = torch.as_tensor(mask)
    if mask.dtype is not torch.bool:
        remedy = "convert it with .bool()"
        raise TypeError(_errors.message(where, "known", "be a bool tensor or array", mask, remedy))
    if mask.shape != codes.shape:
        remedy = "pass one value per label"
        raise ValueError(_errors.message(where, "known", f"be {list(codes.shape)}", mask, remedy))
    return torch.where(mask.cpu(), codes, UNKNOWN)


def finding_names(where: str, findings: Any) -> list[Hashable]:
    """Distinct hashable names."""
    if isinstance(findings, (str, bytes)) or not isinstance(findings, (Iterable, Tensor)):
        remedy = "pass [...] around it"
        raise TypeError(_errors.message(where, "findings", "be several names", repr(findings), remedy))
    if isinstance(findings, Tensor):
        _errors.check_values(where, "findings", findings)
    names = findings.tolist() if isinstance(findings, (Tensor, np.ndarray)) else list(findings)
    names = [_numbers.python(name) for name in names]
    for name in names:
        try:
            hash(name)
        except TypeError:
            remedy = "use strings or integers"
            raise TypeError(_errors.message(where, "findings", "hold hashable names", name, remedy)) from None
    nameless = [name for name in names if name is None or name != name]  # None, NaN
    if nameless:
        remedy = "name every column of Y"
        raise ValueError(_errors.message(where, "findings", "be names", nameless[0], remedy))
    if len(set(names)) != len(names) or not names:
        got = f"{len(names)} names, {len(set(names))} of them different"
        remedy = "name every column of Y once"
        raise ValueError(_errors.message(where, "findings", "be distinct names", got, remedy))
    return names


def columns_of(where: str, findings: Sequence[Hashable], known: Sequence[Hashable]) -> list[int]:
    """Where each finding stands among those that are known."""
    place = {name: i for i, name in enumerate(known)}
    strange = [name for name in findings if name not in place]
    if strange:
        shown = ", ".join(repr(name) for name in strange[:5])
        remedy = "pass their prompt_features, or add_findings(...) them"
        raise ValueError(_errors.message(where, "findings", "have prompts", f"{shown} without", remedy))
    return [place[name] for name in findings]

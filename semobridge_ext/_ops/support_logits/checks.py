"""The error contract of support_logits and SupportSet."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from semobridge_ext import _arrays, _errors, _numbers

_CLASSES = 1 << 31


def support_tensors(
    function: str, keys: Any, labels: Any, weights: Any, device: torch.device | None = None
) -> tuple[Any, Any, Any]:
    """Arrays and lists of one support set as tensors, on the device of its keys."""
    if isinstance(keys, Tensor) and isinstance(labels, Tensor) and weights is None:
        return keys, _arrays.whole(labels), None
    keys = _arrays.tensor(function, "keys", keys, device)
    device = getattr(keys, "device", None)
    return keys, _arrays.whole(labels, device), _arrays.tensor(function, "weights", weights, device)


def check_support(
    function: str, keys: Tensor, labels: Tensor, num_classes: int, weights: Tensor | None
) -> None:
    """Kind, dtype, shape and device of one support set."""
    _errors.check_float_tensor(function, "keys", keys)
    if keys.dim() != 2 or keys.shape[1] == 0:
        remedy = "pass one row per support item"
        raise ValueError(_errors.message(function, "keys", "be [S, D]", keys, remedy))
    if not _numbers.is_whole(num_classes):
        remedy = "pass the number of classes"
        raise TypeError(
            _errors.message(function, "num_classes", "be an int", _errors.describe(num_classes), remedy)
        )
    if num_classes < 1:
        remedy = "pass the number of classes"
        raise ValueError(_errors.message(function, "num_classes", "be ≥ 1", num_classes, remedy))
    if num_classes >= _CLASSES:
        remedy = "every class has a column in the result; number those that occur from 0"
        raise ValueError(_errors.message(function, "num_classes", "be below 2³¹", num_classes, remedy))
    if not _errors.is_dense(labels) or labels.dtype is not torch.int64:
        remedy = "pass class numbers from 0, for example labels.long()"
        contract = "be whole numbers"
        raise TypeError(_errors.message(function, "labels", contract, _errors.describe(labels), remedy))
    if labels.shape != keys.shape[:1]:
        contract, remedy = f"be [{keys.shape[0]}]", "pass one label per key"
        raise ValueError(_errors.message(function, "labels", contract, labels, remedy))
    _errors.check_memory(function, "labels", labels)
    _errors.check_same_device(function, "labels", labels, keys.device)
    if weights is not None:
        _errors.check_float_tensor(function, "weights", weights)
        if weights.shape != keys.shape[:1]:
            contract, remedy = f"be [{keys.shape[0]}]", "pass one weight per key"
            raise ValueError(_errors.message(function, "weights", contract, weights, remedy))
        _errors.check_same_device(function, "weights", weights, keys.device)


def check_queries(function: str, queries: Tensor, width: int, device: torch.device) -> None:
    _errors.check_float_tensor(function, "queries", queries)
    if queries.dim() != 2:
        remedy = "reshape it with .reshape(-1, D)"
        raise ValueError(_errors.message(function, "queries", "be [N, D]", queries, remedy))
    _errors.check_last_dim(function, "queries", queries, width, f"the keys have width {width}")
    _errors.check_same_device(function, "queries", queries, device)


def check_beta(function: str, beta: float) -> float:
    if not _numbers.is_real(beta):
        got = _errors.describe(beta)
        raise TypeError(_errors.message(function, "beta", "be a number", got, "pass a float"))
    if not 0 <= beta < math.inf:
        remedy = "it is the sharpness of the kernel; Tip-Adapter searches 0.1 to 50"
        raise ValueError(_errors.message(function, "beta", "be ≥ 0 and finite", beta, remedy))
    return float(beta)

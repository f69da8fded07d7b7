"""The error contract of support_logits and SupportSet."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from semobridge_ext import _errors


def check_support(
    function: str, keys: Tensor, labels: Tensor, num_classes: int, weights: Tensor | None
) -> None:
    """Kind, dtype, shape and device of one support set."""
    _errors.check_float_tensor(function, "keys", keys)
    if keys.dim() != 2 or keys.shape[1] == 0:
        remedy = "pass one row per support item"
        raise ValueError(_errors.message(function, "keys", "be [S, D]", keys, remedy))
    if isinstance(num_classes, bool) or not isinstance(num_classes, int):
        remedy = "pass the number of classes"
        raise TypeError(_errors.message(function, "num_classes", "be an int", num_classes, remedy))
    if num_classes < 1:
        remedy = "pass the number of classes"
        raise ValueError(_errors.message(function, "num_classes", "be ≥ 1", num_classes, remedy))
    if not isinstance(labels, Tensor) or labels.dtype is not torch.int64:
        remedy = "convert it with torch.as_tensor(labels).long()"
        raise TypeError(_errors.message(function, "labels", "be an int64 tensor", labels, remedy))
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
    if isinstance(beta, bool) or not isinstance(beta, (int, float)):
        raise TypeError(_errors.message(function, "beta", "be a number", beta, "pass a float"))
    if not 0 <= beta < math.inf:
        remedy = "it is the sharpness of the kernel; Tip-Adapter searches 0.1 to 50"
        raise ValueError(_errors.message(function, "beta", "be ≥ 0 and finite", beta, remedy))
    return float(beta)

"""The tensors of a training: checked, on one device, in one dtype."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from torch import Tensor
from torch.nn.functional import normalize

from semobridge_ext import _errors, _inputs
from semobridge_ext.runtime.rows import compute_dtype


class Data(NamedTuple):
    features: Tensor  # [V, N, D]
    labels: Tensor  # [N] int64 on the CPU; −1: unlabelled
    concepts: Tensor | None  # [K, D] unit rows
    teacher: tuple[Tensor, Tensor] | None  # unit rows: images [N, E], concepts [K, E]


def views_of(where: str, X: Any, argument: str = "X") -> Tensor:  # [N, D] or [V, N, D] -> [V, N, D]
    value = X if isinstance(X, Tensor) else np.asarray(X)
    if value.ndim != 3:
        return _inputs.features(where, argument, X)[None]
    views, rows, width = value.shape
    if 0 in value.shape:
        remedy = "pass one row per image and view"
        got = f"shape {[views, rows, width]}"
        raise ValueError(_errors.message(where, argument, "hold values", got, remedy))
    return _inputs.features(where, argument, value.reshape(views * rows, width)).reshape(views, rows, width)


def training_data(
    where: str, x: Tensor, codes: Tensor, concept_features: Any, teacher: Any, taught: bool
) -> Data:
    """Args: x [V, N, D], codes [N]; ``taught``: whether a divergence has a weight."""
    dtype, device = compute_dtype(x.dtype), x.device

    def unit(rows: Tensor) -> Tensor:
        return normalize(rows.double(), dim=1).to(device, dtype)

    concepts = None
    if concept_features is not None:
        given = _inputs.features(where, "concept_features", concept_features)
        if given.shape[1] != x.shape[2] or len(given) < 2:
            contract = f"be [K, {x.shape[2]}] with K ≥ 2"
            remedy = "take X and concepts from the same model"
            raise ValueError(_errors.message(where, "concept_features", contract, given, remedy))
        concepts = unit(given)
    pair = None
    if _is_taught(where, teacher, concepts, taught):
        assert concepts is not None
        images, names = _teacher(where, teacher, x.shape[1], len(concepts))
        pair = unit(images), unit(names)
    return Data(x.to(dtype), codes, concepts, pair)


def _is_taught(where: str, teacher: Any, concepts: Tensor | None, taught: bool) -> bool:
    """Whether there is a teacher; one that is missing or has nothing to teach is refused."""
    wanted = concepts is not None and taught
    if teacher is None and wanted:
        remedy = "pass (image features, concept features), or forward_kl=0 and reverse_kl=0"
        raise ValueError(_errors.message(where, "teacher", "be given for the divergences", "None", remedy))
    if teacher is not None and not wanted:
        got = "no concept_features" if concepts is None else "two divergences of weight 0"
        remedy = "pass None" if concepts is None else "give forward_kl or reverse_kl a weight"
        raise ValueError(_errors.message(where, "teacher", "have something to teach", got, remedy))
    return wanted


def _teacher(where: str, teacher: Any, images: int, concepts: int) -> tuple[Tensor, Tensor]:
    if not isinstance(teacher, (tuple, list)) or len(teacher) != 2:
        remedy = "pass (image features, concept features)"
        raise TypeError(_errors.message(where, "teacher", "be a pair of features", teacher, remedy))
    found = []
    for argument, value, rows in (
        ("teacher[0]", teacher[0], images),
        ("teacher[1]", teacher[1], concepts),
    ):
        part = _inputs.features(where, argument, value)
        if len(part) != rows:
            remedy = "one row per image, and one per concept"
            raise ValueError(_errors.message(where, argument, f"have {rows} rows", part, remedy))
        found.append(part)
    if found[0].shape[1] != found[1].shape[1]:
        contract, remedy = f"have width {found[0].shape[1]}", "take both from the teacher"
        raise ValueError(_errors.message(where, "teacher[1]", contract, found[1], remedy))
    return found[0], found[1]

"""The tensors of a training: checked, on one device, all but cached block inputs in one dtype."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from semobridge_ext import _errors, _inputs
from semobridge_ext.discovery.vision_block import VisionBlock
from semobridge_ext.runtime.rows import compute_dtype


class Data(NamedTuple):
    features: Tensor  # [V, N, D]; with a block [V, N, L, T], in the dtype in which they were cached
    labels: Tensor  # [N] int64 on the CPU; −1: unlabelled
    concepts: Tensor | None  # [K, D] unit rows
    teacher: tuple[Tensor, Tensor] | None  # unit rows: images [N, E], concepts [K, E]
    block: VisionBlock | None = None

    @property
    def dtype(self) -> torch.dtype:  # of the training
        return compute_dtype(self.features.dtype)

    @property
    def width(self) -> int:  # D
        return self.features.shape[2] if self.block is None else self.block.features


def views_of(where: str, X: Any, argument: str = "X") -> Tensor:  # [N, D] or [V, N, D] -> [V, N, D]
    value = _inputs.numbers(where, argument, X)
    if value.is_nested or value.ndim != 3:
        return _inputs.features(where, argument, value)[None]
    views, rows, width = value.shape
    if 0 in value.shape:
        remedy = "pass one row per image and view"
        got = f"shape {[views, rows, width]}"
        raise ValueError(_errors.message(where, argument, "hold values", got, remedy))
    return _inputs.features(where, argument, value.reshape(views * rows, width)).reshape(views, rows, width)


def block_inputs(where: str, X: Any, block: VisionBlock) -> Tensor:  # [V, N, L, T] or [N, L, T]
    """Checked, as they are: the rows of a mapped file are looked at and not copied."""
    x = _errors.check_float_tensor(where, "X", _inputs.numbers(where, "X", X)).detach()
    tokens, width = block.facts.tokens, block.width
    if x.dim() not in (3, 4) or x.shape[-2:] != (tokens, width) or not x.numel():
        contract = f"be [N, {tokens}, {width}] or [V, N, {tokens}, {width}]"
        remedy = "take it from cache_block_inputs(model, images)"
        raise ValueError(_errors.message(where, "X", contract, x, remedy))
    remedy = "remove these images"
    _errors.check_rows(where, "X", x.reshape(-1, tokens * width), remedy, infinite=False)
    return x


def training_data(
    where: str,
    x: Tensor,
    codes: Tensor,
    concept_features: Any,
    teacher: Any,
    taught: bool,
    block: VisionBlock | None = None,
) -> Data:
    """Args: x [V, N, D], with a block [V, N, L, T]; codes [N]; taught: whether a divergence has a weight."""
    dtype, device = compute_dtype(x.dtype), x.device
    data = Data(x if block is not None else x.to(dtype), codes, None, None, block and block.to(device, dtype))

    def unit(rows: Tensor) -> Tensor:
        return normalize(rows.double(), dim=1).to(device, dtype)

    concepts = None
    if concept_features is not None:
        given = _inputs.features(where, "concept_features", concept_features)
        if given.shape[1] != data.width or len(given) < 2:
            contract = f"be [K, {data.width}] with K ≥ 2"
            remedy = "take X and concepts from the same model"
            raise ValueError(_errors.message(where, "concept_features", contract, given, remedy))
        concepts = unit(given)
    pair = None
    if _is_taught(where, teacher, concepts, taught):
        assert concepts is not None
        images, names = _teacher(where, teacher, x.shape[1], len(concepts))
        pair = unit(images), unit(names)
    return data._replace(concepts=concepts, teacher=pair)


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

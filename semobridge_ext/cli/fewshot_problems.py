"""What `semobridge-ext fewshot` studies: the embedded sets, or files of features."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from semobridge_ext.cli import fewshot_tables
from semobridge_ext.cli.embedded import BATCH, TEMPLATES, Clip, chosen_sets, encode_drawings, load_clip
from semobridge_ext.cli.tables import holds_features
from semobridge_ext.clip import image_projection, text_projection
from semobridge_ext.clip.class_text import class_text_features
from semobridge_ext.fewshot.study import Problem, Progress

_CLASSES = 1 << 20  # where no text says how many there are: a label of 2³³ would ask for 64 GiB of counts


def _check_labels(path: Path, labels: Tensor, classes: int, what: str) -> Tensor:  # [N] -> [N] int64
    """Whole numbers below `classes`, of any numeric dtype; the first row with another is named."""
    values = labels.double()  # exact in the range that is allowed
    wrong = ~((values >= 0) & (values < classes) & (values == values.floor()))
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"fewshot: {path} must hold whole numbers from 0 to {classes - 1} as labels, {what}, got "
            f"{labels[row].item()} in row {row}; number the classes from 0"
        )
    return labels.long()


def _load_file(
    path: Path, codes: fewshot_tables.Codes, texts: argparse.Namespace | None = None
) -> dict[str, Tensor]:
    if holds_features(path):
        return _checked(path, fewshot_tables.read(path, codes, texts))
    if not path.is_file():
        raise FileNotFoundError(f"fewshot: feature file must exist, got {path}; check the name")
    try:
        if path.suffix == ".npz":
            import numpy as np

            # Opened here, because NumPy leaves a damaged archive open.
            with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
                tensors = {name: torch.from_numpy(file[name]) for name in file.files}
        else:
            from safetensors.torch import load_file

            tensors = load_file(path)
    except Exception as error:
        contract = "be a whole .npz or .safetensors file"
        raise ValueError(f"fewshot: {path} must {contract} ({error}); write it again") from error
    return _checked(path, tensors)


def _checked(path: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    for name in ("features", "labels"):
        if name not in tensors:
            raise ValueError(f"fewshot: {path} must hold '{name}', got {sorted(tensors)}; add it")
    features, labels = tensors["features"], tensors["labels"]
    if features.dim() != 2 or labels.shape != features.shape[:1]:
        raise ValueError(
            f"fewshot: {path} must hold features [N, D] and labels [N], got {list(features.shape)} and "
            f"{list(labels.shape)}; align them"
        )
    if not len(labels) or labels.is_complex() or features.is_complex():
        got = f"{len(labels)} rows of {features.dtype} with labels of {labels.dtype}".replace("torch.", "")
        raise ValueError(f"fewshot: {path} must hold rows of real numbers, got {got}; write it again")
    text = tensors.get("text")
    if text is not None and (text.dim() != 2 or text.shape[1] != features.shape[1] or not len(text)):
        raise ValueError(
            f"fewshot: {path} must hold text [C, {features.shape[1]}], as wide as its features, got "
            f"{list(text.shape)}; take both from one model"
        )
    classes, what = (_CLASSES, "a million classes at most") if text is None else (len(text), "rows of 'text'")
    before = tensors.get("before")
    if before is not None and (before.dim() != 2 or len(before) != len(labels) or before.is_complex()):
        raise ValueError(
            f"fewshot: {path} must hold before [{len(labels)}, V], real numbers beside its features, got "
            f"{list(before.shape)} of {before.dtype}; align them"
        )
    labels = _check_labels(path, labels, classes, what)
    return {**tensors, "features": features.float(), "labels": labels}


def _before(parts: list[tuple[Path, dict[str, Tensor]]]) -> tuple[Tensor, ...] | None:
    """The files' rows before the projection, where the first has a projection and all have them."""
    path, train = parts[0]
    matrix = train.get("image_projection")
    if matrix is None or not all("before" in tensors for _, tensors in parts):
        return None
    width = train["features"].shape[1]
    for held, tensors in parts:
        found = tensors["before"].shape[1]
        if matrix.shape != (found, width):
            raise ValueError(
                f"fewshot: {path} must hold image_projection [{found}, {width}], from 'before' of {held} to "
                f"its features, got {list(matrix.shape)}; take both from one model"
            )
    return tuple(tensors["before"].float() for _, tensors in parts)


def _check_held(held: dict[str, Tensor], path: Path, train: dict[str, Tensor], train_file: Path) -> None:
    """Features to tune or score on must be of the classes and the width that are trained on."""
    width, found = train["features"].shape[1], held["features"].shape[1]
    if width != found:
        raise ValueError(
            f"fewshot: {path} must hold features of width {width}, as {train_file}, got {found}; take both "
            "from one model"
        )
    classes = len(train["text"]) if "text" in train else int(train["labels"].max()) + 1
    _check_labels(path, held["labels"], classes, f"the classes of {train_file}")


def of_files(
    train_file: Path | None,
    val_file: Path | None,
    test_file: Path | None,
    texts: argparse.Namespace | None = None,  # the command's arguments, for class texts
) -> Problem:
    """The problem of feature files; without a validation file, a third of the training rows is set aside."""
    if train_file is None or test_file is None:
        raise ValueError("fewshot: --train and --test go together; give both feature files")
    codes: fewshot_tables.Codes = {}
    train, test = _load_file(train_file, codes, texts), _load_file(test_file, codes)
    _check_held(test, test_file, train, train_file)
    x, y = train["features"], train["labels"]
    parts = [(train_file, train), (test_file, test)]
    if val_file is not None:
        held = _load_file(val_file, codes)
        _check_held(held, val_file, train, train_file)
        parts.insert(1, (val_file, held))
        val, before = (held["features"], held["labels"]), _before(parts)
    else:
        sizes = torch.bincount(y)
        if int(sizes[sizes > 0].min()) < 2:
            raise ValueError(f"fewshot: {train_file} must hold two rows of every class, got one; use --val")
        # Seeded apart from the draws of shots; a class keeps at least one row on either side.
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(987))
        order = order[torch.argsort(y[order], stable=True)]
        place = torch.arange(len(y)) - (sizes.cumsum(0) - sizes)[y[order]]
        aside = torch.zeros(len(y), dtype=torch.bool)
        aside[order] = place < (sizes[y[order]] // 3).clamp(min=1)
        val, before = (x[aside], y[aside]), _before(parts)
        if before is not None:
            before = before[0][~aside], before[0][aside], before[1]
        x, y = x[~aside], y[~aside]
    matrix = None if before is None else train["image_projection"].float()
    return Problem(
        train_file.stem, (x, y), val, (test["features"], test["labels"]),
        train.get("text"), train.get("hidden"), train.get("text_projection"),
        text_length=float(train.get("text_length", 1.0)) if holds_features(train_file) else 1.0,
        before=before, image_projection=matrix,  # type: ignore[arg-type]
    )  # fmt: skip


def of_sets(word: str) -> Iterator[Problem]:
    """The problems of the embedded sets that ``--set`` stands for."""
    from semobridge_ext.data import load_picto

    names = chosen_sets(word)
    clip = load_clip()
    for name in names:
        yield of_drawings(clip, load_picto(name))


def of_drawings(
    clip: Clip, ds: Any, templates: Sequence[str] = TEMPLATES, progress: Progress | None = None
) -> Problem:
    """The problem of one embedded set, its drawings encoded once: the projection is one more product."""
    labels = torch.as_tensor(ds.labels).long()
    parts = [torch.as_tensor(p) for p in (ds.train, ds.val, ds.test)]
    text = class_text_features(clip.model, ds.class_names, templates, tokenizer=clip.tokenizer)
    before = encode_drawings(clip.model, clip.preprocess, ds.images, project=False, progress=progress)
    matrix = image_projection(clip.model)
    # Out of inference mode, in the chunks in which the model would have multiplied.
    features = torch.cat([rows @ matrix for rows in before.split(BATCH)]).float().clone()
    before = before.float().clone()
    train, val, test = ((features[p], labels[p]) for p in parts)
    assert text.hidden is not None and text.length is not None  # the embedded CLIP ends in a matrix
    return Problem(
        ds.name, train, val, test, text.projected.float(), text.hidden.float(),
        text_projection(clip.model).float(), text.length,
        (before[parts[0]], before[parts[1]], before[parts[2]]), matrix.float(),
    )  # fmt: skip

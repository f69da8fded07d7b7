"""What `semobridge-ext fewshot` studies: the embedded sets, or files of features."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from semobridge_ext.cli.embedded import TEMPLATES, chosen_sets, encode_drawings
from semobridge_ext.fewshot.study import Problem

_MOST = 1 << 20  # classes; sums by class are kept for all numbers up to the largest


def _are_classes(labels: Tensor) -> bool:
    """Whether they are whole numbers of classes, at least one; floats may be whole, too."""
    if not len(labels) or labels.is_complex():
        return False
    wide = labels.double()
    return torch.equal(wide, wide.round()) and bool(((wide >= 0) & (wide < _MOST)).all())


def _load_file(path: Path) -> dict[str, Tensor]:
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
    for name in ("features", "labels"):
        if name not in tensors:
            raise ValueError(f"fewshot: {path} must hold '{name}', got {sorted(tensors)}; add it")
    features, labels = tensors["features"], tensors["labels"]
    if features.dim() != 2 or labels.shape != features.shape[:1]:
        raise ValueError(
            f"fewshot: {path} must hold features [N, D] and labels [N], got {list(features.shape)} and "
            f"{list(labels.shape)}; align them"
        )
    if not _are_classes(labels):
        got = f"{labels[:5].tolist()} first" if len(labels) else "no rows"
        contract = f"hold class numbers in 0..{_MOST - 1} as labels"
        raise ValueError(f"fewshot: {path} must {contract}, got {got}; number the classes from 0 on")
    return {**tensors, "features": features.float(), "labels": labels.long()}


def of_files(train_file: Path | None, val_file: Path | None, test_file: Path | None) -> Problem:
    """The problem of feature files; without a validation file, a third of the training rows is set aside."""
    if train_file is None or test_file is None:
        raise ValueError("fewshot: --train and --test go together; give both feature files")
    train, test = _load_file(train_file), _load_file(test_file)
    x, y = train["features"], train["labels"]
    if val_file is not None:
        held = _load_file(val_file)
        val = held["features"], held["labels"]
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
        val = x[aside], y[aside]
        x, y = x[~aside], y[~aside]
    return Problem(
        train_file.stem, (x, y), val, (test["features"], test["labels"]),
        train.get("text"), train.get("hidden"), train.get("text_projection"),
    )  # fmt: skip


def of_sets(word: str) -> Iterator[Problem]:
    """The problems of the embedded sets that ``--set`` stands for."""
    from semobridge_ext.clip import text_projection
    from semobridge_ext.clip.class_text import class_text_features
    from semobridge_ext.data import load_picto, load_picto_clip

    names = chosen_sets(word)
    model, preprocess, tokenizer = load_picto_clip()
    model.eval()
    for name in names:
        ds = load_picto(name)
        features = encode_drawings(model, preprocess, ds.images).float().clone()
        labels = torch.as_tensor(ds.labels).long()
        parts = [torch.as_tensor(p) for p in (ds.train, ds.val, ds.test)]
        text = class_text_features(model, ds.class_names, TEMPLATES, tokenizer=tokenizer)
        train, val, test = ((features[p], labels[p]) for p in parts)
        projection = text_projection(model).float()
        yield Problem(
            name, train, val, test, text.projected.float(), text.hidden.float(), projection, text.length
        )

"""Shards and tables as the feature files of `fewshot`: rows with a label, and class texts by their model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from semobridge_ext.cli import mappings, models
from semobridge_ext.cli.named.catalogue import TEMPLATE, in_prompt
from semobridge_ext.cli.named.prompt_file import read_prompts
from semobridge_ext.cli.shards import Folder
from semobridge_ext.cli.tables import open_features
from semobridge_ext.clip import text_projection
from semobridge_ext.clip.class_text import class_text_features

Codes = dict[str, int]  # class name → number; empty until the training rows have named theirs


def read(path: Path, codes: Codes, texts: argparse.Namespace | None = None) -> dict[str, Tensor]:
    """What a feature file holds: 'features' [N, D] raw and 'labels' [N] of the rows that have a label.

    Whole numbers are taken as they are; names are numbered in their order by the first folder, and `codes`
    grows by them. With `texts`, the command's arguments, 'text' and what belongs to it join, where
    settings.json names a model that projects.
    """
    folder = open_features("fewshot", path)
    folder.shards()
    folder.check_finished()
    found = folder.column("label", "the label")
    kept = [row for row, label in enumerate(found) if label is not None]
    if not kept:
        raise ValueError(
            f"fewshot: {path} must have labels, got none in the column label; extract a folder with one "
            "sub-folder per class"
        )
    given = [found[row] for row in kept]
    blocks = [block.clone() for block in folder.blocks()]
    rows = torch.cat(blocks) if blocks else torch.zeros(0, 0)
    if len(rows) != len(found):
        raise ValueError(
            f"fewshot: {path} must have one record per row, got {len(rows)} rows and {len(found)} records; "
            "make the folder again"
        )
    features = rows if len(kept) == len(rows) else rows[torch.tensor(kept)]
    if all(type(label) is int for label in given):
        return {"features": features, "labels": torch.tensor(given)}
    first = not codes
    if first:
        codes |= {name: code for code, name in enumerate(sorted({str(label) for label in given}))}
    if strange := sorted({str(label) for label in given} - set(codes)):
        raise ValueError(
            f"fewshot: {path} must have labels of the training rows, got '{strange[0]}'; train on that class "
            "too, or leave it out"
        )
    labels = torch.tensor([codes[str(label)] for label in given])
    more = _texts(folder, list(codes), texts) if first and texts is not None else {}
    return {"features": features, "labels": labels, **more}


def _texts(folder: Folder, names: list[str], args: argparse.Namespace) -> dict[str, Tensor]:
    """Class texts in the space of the rows; none where no model is named, or it is another space."""
    settings = folder.settings()
    if "model" not in settings or settings.get("features") != mappings.PROJECTED:
        return {}
    model = models.maker_of("fewshot", folder, args.device)
    names = [in_prompt(name) for name in names]
    templates: Any = args.template or (TEMPLATE,)
    if args.prompts is not None:
        templates = read_prompts("fewshot", args.prompts, names)
    text = class_text_features(model.model, names, templates, tokenizer=model.tokenizer)
    found = {"text": text.projected.float().cpu()}
    if text.hidden is not None:
        found |= {"hidden": text.hidden.float().cpu()}
        found |= {"text_projection": text_projection(model.model, bias=True).float().cpu()}
        found |= {"text_length": torch.tensor(text.length or 1.0)}
    return found

"""A data set by name as a few-shot problem: images encoded once, class texts, parts, what to say of them."""

from __future__ import annotations

import argparse
import re
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from semobridge_ext import _digest
from semobridge_ext.cli import models
from semobridge_ext.cli.named import torchvision_set
from semobridge_ext.cli.named.catalogue import ENTRIES, PREFIX, TEMPLATE, in_prompt
from semobridge_ext.cli.named.parts import parts_of
from semobridge_ext.cli.named.prompt_file import read_prompts
from semobridge_ext.cli.shards import Folder
from semobridge_ext.clip import image_projection, text_projection
from semobridge_ext.clip.class_text import class_text_features
from semobridge_ext.fewshot.study import Part, Problem

_ROWS = 1 << 14  # projected at once


class Prepared(NamedTuple):
    """What a study needs to know of one data set."""

    problem: Problem
    names: list[str]  # [C] as prompts have them
    notes: list[str]
    published: str  # its name in `fewshot.published`, or ""
    folder: Folder
    rows: tuple[Tensor, Tensor, Tensor]  # of the parts, in the folder


def title(spec: str) -> str:
    """How tables name a data set."""
    return spec.removeprefix(PREFIX)


def folder_name(spec: str) -> str:
    """A name of its own for what belongs to a data set."""
    plain = re.sub(r"[^A-Za-z0-9]+", "-", title(spec)).strip("-").lower()[-40:]
    return f"{plain}-{_digest.digest(spec)[:6]}"


def linear_projection(model: Any) -> Tensor | None:  # [V, D]
    try:
        return image_projection(model)
    except TypeError:
        return None


def extracted(
    function: str, spec: str, args: argparse.Namespace, names: tuple[str, str | None], out: Path, hidden: bool
) -> Folder:
    """The images of a data set as shards in `out`, as `extract` makes them and goes on with them."""
    from semobridge_ext.cli.commands import extract

    parser = argparse.ArgumentParser()
    extract.add_parser(parser.add_subparsers())
    words = ["extract", spec, str(out), "--dtype", "float32", "--model", names[0], "--device", args.device]
    words += ["--workers", str(args.workers)]
    for option, value in (("--pretrained", names[1]), ("--root", args.root), ("--split", args.split)):
        words += [option, str(value)] if value is not None else []
    words += [*(["--download"] if args.download else []), *(["--before-projection"] if hidden else [])]
    with redirect_stdout(sys.stderr):
        extract.run(parser.parse_args([*words, *(["--quiet"] if args.quiet else [])]))
    return Folder(function, out)


def raw_rows(folder: Folder, matrix: Tensor | None) -> tuple[Tensor | None, Tensor]:
    """[N, V] rows before the projection where there is a matrix, and raw [N, D] features."""
    blocks = list(folder.blocks())
    rows = torch.cat(blocks) if blocks else torch.zeros(0, 0)
    if matrix is None:
        return None, rows
    return rows, torch.cat([part @ matrix.cpu().float() for part in rows.split(_ROWS)])


def _classes(folder: Folder, count: int) -> tuple[list[int], Tensor, list[str]]:
    """Rows with a label, their classes from 0 [n], and the names of the classes."""
    labels = folder.column("label")
    has_index = "class_index" in folder.table(folder.shards()[0]).column_names
    index = folder.column("class_index") if has_index else []
    if not all(value is None or str(value).isdecimal() for value in index):
        index = []  # a column of that name in somebody's own list
    index = index or [None] * len(labels)
    if len(labels) != count:
        raise ValueError(
            f"{folder.function}: {folder.path} must have one record per row, got {count} rows and "
            f"{len(labels)} records; make the folder again"
        )
    kept = [i for i, name in enumerate(labels) if name is not None]
    # In the order of the data set's own classes where it has one, else by name.
    keys = {(int(index[i] or 0), str(labels[i])) for i in kept}
    order = sorted(keys)
    codes = {key: code for code, key in enumerate(order)}
    found = [codes[int(index[i] or 0), str(labels[i])] for i in kept]
    return kept, torch.tensor(found, dtype=torch.int64), [in_prompt(name) for _, name in order]


def templates_of(spec: str) -> tuple[str, ...]:
    return ENTRIES[torchvision_set.known("", spec).name].templates if spec.startswith(PREFIX) else (TEMPLATE,)


def prepare(
    function: str,
    spec: str,
    args: argparse.Namespace,
    names: tuple[str, str | None],
    encoder: models.Encoder,
    home: Path,
) -> Prepared:
    """Encodes the images below `home`, if that is not done, and the class texts; draws the parts."""
    matrix = linear_projection(encoder.model)
    folder = extracted(function, spec, args, names, home / folder_name(spec), matrix is not None)
    before, features = raw_rows(folder, matrix)
    kept, labels, classes = _classes(folder, len(features))
    if len(classes) < 2:
        raise ValueError(
            f"{function}: --dataset must have two classes at least, got {len(classes)} in {spec}; name one "
            "with labels, or a folder with one sub-folder per class"
        )
    has_split = "split" in folder.table(folder.shards()[0]).column_names
    split = folder.column("split") if has_split else None
    parts = parts_of(labels, None if split is None else [split[i] for i in kept])
    if not all(len(rows) for rows in parts[:3]):
        sizes = "/".join(str(len(rows)) for rows in parts[:3])
        raise ValueError(
            f"{function}: --dataset must give images to train, validate and test, got {sizes} of {spec}; "
            "name the whole data set, not one part"
        )
    templates: Any = args.template or templates_of(spec)
    if args.prompts is not None:
        templates = read_prompts(function, args.prompts, classes)
    text = class_text_features(encoder.model, classes, templates, tokenizer=encoder.tokenizer)
    hidden = None if text.hidden is None else text.hidden.float().cpu()
    rows = torch.tensor(kept)

    def part(chosen: Tensor) -> Part:
        return features[rows[chosen]], labels[chosen]

    shown = (lambda chosen: before[rows[chosen]]) if before is not None else None
    problem = Problem(
        title(spec), part(parts.train), part(parts.val), part(parts.test),
        text.projected.float().cpu(), hidden, _text_matrix(encoder.model), text.length or 1.0,
        None if shown is None else (shown(parts.train), shown(parts.val), shown(parts.test)),
        None if matrix is None else matrix.float().cpu(),
    )  # fmt: skip
    source = str(folder.settings().get("splits", "no splits"))
    counts = [len(chosen) for chosen in parts[:3]]
    lost = len(features) - len(kept)
    note = (
        f"{title(spec)}: {len(classes)} classes; {counts[0]} training, {counts[1]} validation, {counts[2]} "
        f"test images; splits: {source}; {parts.told}"
    )
    entry = ENTRIES[torchvision_set.known(function, spec).name] if spec.startswith(PREFIX) else None
    published = "" if entry is None else entry.published
    notes = [note, *([f"{title(spec)}: {lost} images without a label are left out"] if lost else [])]
    chosen_rows = (rows[parts.train], rows[parts.val], rows[parts.test])
    return Prepared(problem, classes, notes, published, folder, chosen_rows)


def _text_matrix(model: Any) -> Tensor | None:  # [T, D], or [T + 1, D] with a bias
    try:
        return text_projection(model, bias=True).float().cpu()
    except TypeError:  # a text tower without a linear projection has nothing to bridge with
        return None

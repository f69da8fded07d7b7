"""What `semobridge-ext discover` trains on: images, their labels, features of both models."""

from __future__ import annotations

import argparse
import csv
import os
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from semobridge_ext import _files
from semobridge_ext.cli import embedded, models, queries
from semobridge_ext.cli.commands import extract
from semobridge_ext.cli.output import Tell
from semobridge_ext.cli.shards import Folder
from semobridge_ext.cli.tables import holds_features, open_features

PICTO = "picto:"


class Problem(NamedTuple):
    shards: Folder
    paths: list[str]  # N
    features: Tensor  # [N, D] unit rows
    labels: list[str | None]  # N, None where unlabelled
    truth: list[str] | None  # N: of an embedded set

    @property
    def old(self) -> list[str]:
        return sorted({label for label in self.labels if label is not None})


def of_arguments(args: argparse.Namespace, tell: Tell) -> Problem:
    """Features are extracted into OUT/features unless INPUT has them already."""
    given = args.input
    if given.startswith(PICTO):
        name = embedded.chosen_sets(given.removeprefix(PICTO))[0]
        given = str(_drawings(name, args.out / "images"))
    if holds_features(given):
        folder = open_features("discover", given)
        folder.shards()
        folder.check_finished()
        models.name_maker(folder, args.model, args.pretrained)
        queries.check_model(folder)
    else:
        folder = _extracted(args, given, tell)
    paths, features = [str(path) for path in folder.column("image_path")], folder.load()
    if len(paths) != len(features):
        raise ValueError(
            f"discover: INPUT must have one record per row, got {len(features)} rows and {len(paths)} "
            f"records in {folder.path}; make the folder again"
        )
    truth = [str(n) for n in folder.column("label")] if args.input.startswith(PICTO) else None
    return Problem(folder, paths, features, _labels(args, folder, paths, truth), truth)


def _extracted(args: argparse.Namespace, given: str, tell: Tell) -> Folder:
    home, out = Path(given).resolve(), args.out.resolve()
    if home.is_dir() and out.is_relative_to(home) and not args.input.startswith(PICTO):
        raise ValueError(
            f"discover: --out must lie outside of INPUT, got {args.out} in {given}; the sheet would be taken "
            "for one of its images"
        )
    parser = argparse.ArgumentParser()
    extract.add_parser(parser.add_subparsers())
    words = ["extract", given, str(args.out / "features"), "--dtype", "float32"]
    words += ["--device", args.device, "--workers", str(args.workers)]
    words += ["--model", args.model] if args.model else []
    words += ["--pretrained", args.pretrained] if args.pretrained else []
    for option, value in (("--root", args.root), ("--split", args.split)):
        words += [option, str(value)] if value is not None else []
    words += ["--download"] if args.download else []
    parsed = parser.parse_args(words)
    parsed.quiet = args.quiet
    tell(extract.told(extract.perform(parsed, tell)))
    return Folder("discover", args.out / "features")


def _drawings(name: str, home: Path) -> Path:
    """An embedded set as files, a folder a class; what is there already stays."""
    import io

    from PIL import Image

    from semobridge_ext.data import load_picto

    data = load_picto(name)
    for i, (label, image) in enumerate(zip(data.labels.tolist(), data.images, strict=True)):
        path = home / name / data.class_names[label].replace("/", "-") / f"{i:05d}.png"
        if path.is_file():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        png = io.BytesIO()
        Image.fromarray(image.numpy()).save(png, "PNG")
        _files.write_bytes(path, png.getvalue())
    return home / name


# -- labels ----------------------------------------------------------------------------------------------


def _labels(
    args: argparse.Namespace, folder: Folder, paths: list[str], truth: list[str] | None
) -> list[str | None]:
    if args.labels is not None:
        return _of_file(args.labels, paths)
    found: list[str | None] = (
        list(truth) if truth else [None if n is None else str(n) for n in folder.column("label")]
    )
    known = sorted({n for n in found if n is not None})
    if truth is not None:
        old = set(args.old or known[: max(1, len(known) // 2)])
    elif args.old:
        old = set(args.old)
    else:
        raise ValueError(
            "discover: --labels or --old must be given, got neither; name a CSV of image and label, or the "
            f"sub-folders whose names are labels, of {', '.join(known[:8])}{' ..' if len(known) > 8 else ''}"
        )
    for name in sorted(old - set(known)):
        models.complete("discover", "--old", name, known)
        raise ValueError(f"discover: --old must be written as the folder is, got '{name}'; see --help")
    kept: list[str | None] = [name if name in old else None for name in found]
    if truth is not None:  # a benchmark: every second drawing of an old class
        seen: dict[str, int] = {}
        for i, name in enumerate(found):
            if name in old:
                assert name is not None
                seen[name] = seen.get(name, 0) + 1
                kept[i] = name if seen[name] % 2 else None
    return kept


def _of_file(file: Path, paths: list[str]) -> list[str | None]:
    """Labels by path, relative to the file or absolute; images that it does not name are unlabelled."""
    if not file.is_file():
        raise FileNotFoundError(f"discover: --labels must be an existing file, got {file}; check the name")
    try:
        with open(file, newline="", encoding="utf-8-sig") as text:
            rows = list(csv.reader(text, strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(
            f"discover: --labels must be CSV in UTF-8, got {file} ({error}); save it again"
        ) from error
    header = rows[0] if rows else []
    image = next((n for n in ("image", "image_path", "path", "file", "filename") if n in header), None)
    if image is None or "label" not in header:
        raise ValueError(
            f"discover: --labels must have the columns image and label, got {header} in {file}; "
            "write them into its first line"
        )
    place, label = header.index(image), header.index("label")
    at = {os.path.realpath(path): i for i, path in enumerate(paths)}
    found: list[str | None] = [None] * len(paths)
    named = 0
    for number, row in enumerate(rows[1:], 2):
        if not any(row):
            continue
        if len(row) != len(header):
            raise ValueError(
                f"discover: --labels must have {len(header)} fields a line, got {len(row)} in line {number} "
                f"of {file}; quote names with commas"
            )
        i = at.get(os.path.realpath(file.parent / row[place]))
        name = row[label].strip()
        if i is not None and name:
            if found[i] not in (None, name):
                raise ValueError(
                    f"discover: --labels must give an image one label, got '{found[i]}' and '{name}' for "
                    f"{row[place]} in line {number} of {file}; keep one"
                )
            found[i], named = name, named + 1
    if not named:
        raise ValueError(
            f"discover: --labels must name images of INPUT, got none of {len(paths)} in {file}; paths are "
            "relative to the file"
        )
    return found


# -- the teacher -----------------------------------------------------------------------------------------


def teacher_features(shards: Path, paths: list[str]) -> tuple[Folder, Tensor]:
    """Another model's rows of the same images, in the order of ``paths``."""
    folder = open_features("discover", shards)
    folder.shards()
    folder.check_finished()
    rows, at = folder.load(), {str(path): i for i, path in enumerate(folder.column("image_path"))}
    missing = [path for path in paths if path not in at]
    if missing:
        raise ValueError(
            f"discover: --teacher must hold every image of INPUT, got {shards} without {missing[0]} "
            f"({len(missing)} of {len(paths)} are missing); extract the same folder with the larger model"
        )
    return folder, rows[torch.tensor([at[path] for path in paths])]

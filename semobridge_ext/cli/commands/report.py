"""`semobridge-ext report`: one HTML file about folders of shards."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from semobridge_ext import _files
from semobridge_ext._version import __version__
from semobridge_ext.cli import mappings, models, report_figures, report_images, report_page, report_tables
from semobridge_ext.cli.arguments import count
from semobridge_ext.cli.output import Tell, tell, write_csv, write_json
from semobridge_ext.cli.shards import Folder
from semobridge_ext.cli.tables import open_features
from semobridge_ext.fewshot.held_out import usable_shots
from semobridge_ext.runtime.info import build_info

_DESCRIPTION = """\
Compares folders of shards with labels in one HTML file that needs no other: retrieval, differences with
intervals, accuracy by shots, worst classes, sample images, cosines within and between classes, the
modality gap, spectra, corrupt files, timings, installation. The tables go to CSV files beside it.
"""
_EPILOG = """\
The first folder is the baseline, the others usually what `map` made of it. Features are held in memory.
Of more than --queries images as many ask, drawn once for all folders; every image can be found.
Class texts are the labels in --template, encoded by the model of the shards; --no-text leaves out what
needs them (zero-shot, gap). The page holds up to three small images of a class; --no-images leaves
them out, and the class names and file names of corrupt images stay.

examples:
  semobridge-ext report feats/ feats-bridge/ feats-pca/ --out report.html
  semobridge-ext report feats/ --shots 1 4 16 --seeds 10 --template "a drawing of {}"
"""


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "report",
        help="one HTML file: retrieval, few-shot, cosines, gap, spectra, timings",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shards", metavar="SHARDS", type=Path, nargs="+",
                        help="folders of extract or map; .parquet, .lance")  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("report.html"), metavar="FILE", help="report.html")
    parser.add_argument("--label", default="label", metavar="COLUMN", help="what names the class")
    many = [1, 2, 4, 8]
    parser.add_argument("--shots", type=count, nargs="+", default=many, metavar="K", help="(1 2 4 8)")
    parser.add_argument("--seeds", type=count, default=5, metavar="N", help="draws of the shots (5)")
    parser.add_argument("--queries", type=count, default=20_000, metavar="N",
                        help="images that ask in retrieval, drawn where there are more (20000)")  # fmt: skip
    parser.add_argument("--template", default="a photo of {}", help="around a class name")
    parser.add_argument("--no-images", action="store_true", help="show no sample images")
    parser.add_argument("--no-text", action="store_true", help="load no model, compare with no texts")


def _encode(args: argparse.Namespace, names: list[str]) -> tuple[Tensor | None, list[float] | None]:
    """Raw text features of the classes and singular values of W, of the baseline's model."""
    folder = open_features("report", args.shards[0])
    if args.no_text or "model" not in folder.settings():
        return None, None
    encoder = models.maker_of("report", folder, remedy="extract again, or pass --no-text")
    from semobridge_ext.clip import text_projection

    try:
        singular = torch.linalg.svdvals(text_projection(encoder.model, bias=True).double()).tolist()
    except TypeError:  # a text tower without a linear projection has no such figure
        singular = None
    return encoder.texts(models.prompts("report", names, args.template)), singular


def _texts_for(folder: Folder, texts: Tensor | None, width: int) -> Tensor | None:
    """The class texts in the space of a folder, None where they have no place there."""
    settings = folder.settings()
    if texts is None or settings.get("features") == mappings.HIDDEN:
        return None
    if settings.get("command") == "map":
        carry = mappings.load(folder.path / "mapping.safetensors").text
        if carry is None:
            return None
        texts = carry(texts)
    return normalize(texts, dim=1) if texts.shape[1] == width else None


def _names(paths: list[Path]) -> list[str]:
    """The folders' names, or their paths where two have one name; halves of characters as their code."""
    names = [path.resolve().name for path in paths]
    names = names if len(set(names)) == len(names) else [str(path) for path in paths]
    return [name.encode("utf-8", "backslashreplace").decode() for name in names]


def _run_of(folder: Folder) -> list[Any]:
    settings, summary = folder.settings(), folder.summary()
    rate = summary.get("images_per_second", summary.get("rows_per_second"))
    made = settings.get("mapping", settings.get("model", "another program"))
    return [made, summary.get("rows"), summary.get("seconds"), rate]


def _measured(
    folder: Folder,
    codes: Tensor,
    texts: Tensor | None,
    taken: report_figures.Sample,
    shots: list[int],
    seeds: int,
) -> report_figures.Measured:
    """What is said of one folder; its rows go with the call."""
    folder.shards()
    features = folder.rows_of(codes)
    rows = report_figures.Rows(features, codes[codes >= 0], _texts_for(folder, texts, features.shape[1]))
    return report_figures.measure(rows, taken, shots, seeds)


def run(args: argparse.Namespace) -> int:
    perform(args, tell)
    print(f"{args.out}, {args.out.stem}_*.csv and {args.out.with_suffix('.json')}")
    return 0


def perform(args: argparse.Namespace, tell: Tell) -> dict[str, Any]:
    """The whole of the command but its last line: writes the files, and gives what the JSON file holds."""
    codes: dict[str, int] = {}
    # The rows themselves are read one folder after the other: two folders at once may not fit.
    found_codes = [open_features("report", path).label_codes(args.label, codes) for path in args.shards]
    for path, labels in zip(args.shards, found_codes, strict=True):
        if not torch.equal(labels[labels >= 0], found_codes[0][found_codes[0] >= 0]):
            raise ValueError(
                f"report: SHARDS must be of the same images, got other labels in {path} than in "
                f"{args.shards[0]}; map the first folder to make the others"
            )
    labels = found_codes[0][found_codes[0] >= 0]
    texts, singular = _encode(args, list(codes))
    sizes = torch.bincount(labels)
    if len(sizes) < 2 or int(sizes.max()) < 2:
        raise ValueError(
            f"report: SHARDS must have two classes, one of them with two images, got {len(sizes)} classes in "
            f"{args.shards[0]}; name another column with --label"
        )
    shots, classes = usable_shots(labels, args.shots)
    taken = report_figures.sample(len(labels), args.queries, 0)
    first = open_features("report", args.shards[0])
    found: dict[str, Any] = {
        "made": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()), "version": __version__,
        "images": len(labels), "classes": len(codes), "class_names": list(codes), "shots": shots,
        "shot_classes": classes, "seeds": args.seeds, "sampled": len(taken.chosen),
        "asked": len(taken.asked), "text_projection": singular,
        "folders": {}, "corrupt": [list(pair) for pair in first.losses()], "environment": build_info(),
    }  # fmt: skip
    measured: dict[str, report_figures.Measured] = {}
    for name, path, given in zip(_names(args.shards), args.shards, found_codes, strict=True):
        tell(f"measuring {name}")
        folder = open_features("report", path)
        measured[name] = one = _measured(folder, given, texts, taken, shots, args.seeds)
        base = next(iter(measured.values()))
        change = {} if one is base else {"change": report_figures.change(base, one)}
        found["folders"][name] = {**one.figures, **change, "run": _run_of(folder)}
    nearest = {name: one.nearest for name, one in measured.items()}
    found["by_class"] = report_figures.by_class(list(codes), labels, taken.asked, nearest)
    paths = None if args.no_images else report_images.paths(first, args.label)
    shown = None if paths is None else report_images.samples(paths, labels.tolist(), len(codes))
    _files.write_bytes(args.out, report_page.page(found, shown))
    for name, (header, lines) in report_tables.for_csv(found).items():
        write_csv(args.out.with_name(f"{args.out.stem}_{name}.csv"), header, lines)
    write_json(args.out.with_suffix(".json"), found)
    return found

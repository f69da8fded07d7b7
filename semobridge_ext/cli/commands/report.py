"""`semobridge-ext report`: one HTML file about folders of shards."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from semobridge_ext import _files
from semobridge_ext.cli import mappings, models, report_figures
from semobridge_ext.cli.arguments import count
from semobridge_ext.cli.output import has_matplotlib, write_csv, write_json
from semobridge_ext.cli.shards import Folder
from semobridge_ext.fewshot.held_out import usable_shots
from semobridge_ext.runtime.info import build_info

_DESCRIPTION = """\
Compares folders of shards with labels in one HTML file that needs no other: retrieval, accuracy by
shots, cosines within and between classes, the modality gap, spectra, timings, installation. The tables
go to CSV files beside it.
"""
_EPILOG = """\
The first folder is the baseline, the others usually what `map` made of it. Features are held in memory.
Class texts are the labels in --template, encoded by the model of the shards; --no-text leaves out what
needs them (zero-shot, gap).

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
    parser.add_argument("shards", metavar="SHARDS", type=Path, nargs="+", help="folders of extract or map")
    parser.add_argument("--out", type=Path, default=Path("report.html"), metavar="FILE", help="report.html")
    parser.add_argument("--label", default="label", metavar="COLUMN", help="what names the class")
    many = [1, 2, 4, 8]
    parser.add_argument("--shots", type=count, nargs="+", default=many, metavar="K", help="(1 2 4 8)")
    parser.add_argument("--seeds", type=count, default=5, metavar="N", help="draws of the shots (5)")
    parser.add_argument("--template", default="a photo of {}", help="around a class name")
    parser.add_argument("--no-text", action="store_true", help="load no model, compare with no texts")


def _encode(args: argparse.Namespace, names: list[str]) -> tuple[Tensor | None, list[float] | None]:
    """Raw text features of the classes and singular values of W, of the baseline's model."""
    folder = Folder("report", args.shards[0])
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


def _tables(found: dict[str, Any]) -> dict[str, tuple[list[str], list[list[Any]]]]:
    """Header and rows by name; fractions in per cent."""
    folders = found["folders"].items()
    metrics = ["mAP", "mAP@R", "R-Precision", "Recall@1", "Recall@5", "Recall@10"]
    base = next(iter(found["folders"].values()))["retrieval"]["mAP"]
    shots = [str(k) for k in found["shots"]]

    def percent(values: list[float]) -> str:
        mean = sum(values) / len(values)
        spread = (sum((v - mean) ** 2 for v in values) / max(1, len(values) - 1)) ** 0.5
        return f"{100 * mean:.2f} ± {100 * spread:.2f}"

    return {
        "retrieval": (
            ["folder", *(f"{m} %" for m in metrics), "mAP change", "queries"],
            [
                [n, *(100 * f["retrieval"][m] for m in metrics), 100 * (f["retrieval"]["mAP"] - base),
                 f["retrieval"]["queries"]]
                for n, f in folders
            ],
        ),
        "accuracy": (
            ["folder", *(f"{k} shot{'s' * (k != '1')} %" for k in shots), "zero-shot %"],
            [
                [n, *(percent(f["accuracy"][k]) for k in shots),
                 None if f["zero_shot"] is None else 100 * f["zero_shot"]]
                for n, f in folders
            ],
        ),
        "cosines": (
            ["folder", "mean within", "mean between", "overlap %", "modality gap"],
            [
                [n, f["cosines"]["intra_mean"], f["cosines"]["inter_mean"], 100 * f["cosines"]["overlap"],
                 f["gap"]]
                for n, f in folders
            ],
        ),
        "spectra": (
            ["folder", "width", "effective rank"],
            [[n, f["width"], f["spectrum"]["effective_rank"]] for n, f in folders],
        ),
        "timings": (
            ["folder", "made by", "rows", "seconds", "rows/s", "retrieval here, s"],
            [[n, *f["run"], f["retrieval"]["seconds"]] for n, f in folders],
        ),
        "backend": (
            ["", "value"],
            [
                [key, ", ".join(map(str, v)) if isinstance(v, (list, tuple)) else v]
                for key, v in found["environment"].items() if key != "openmp"
            ],
        ),
    }  # fmt: skip


def _run_of(folder: Folder) -> list[Any]:
    settings, summary = folder.settings(), folder.summary()
    rate = summary.get("images_per_second", summary.get("rows_per_second"))
    made = settings.get("mapping", settings.get("model", "another program"))
    return [made, summary.get("rows"), summary.get("seconds"), rate]


def _measured(
    folder: Folder, codes: Tensor, texts: Tensor | None, chosen: Tensor, shots: list[int], seeds: int
) -> dict[str, Any]:
    """What is said of one folder; its rows go with the call."""
    folder.shards()
    features = folder.rows_of(codes)
    rows = report_figures.Rows(features, codes[codes >= 0], _texts_for(folder, texts, features.shape[1]))
    return {**report_figures.measure(rows, chosen, shots, seeds), "run": _run_of(folder)}


def run(args: argparse.Namespace) -> int:
    from semobridge_ext.cli import report_page

    if not has_matplotlib():
        raise ImportError("report: matplotlib must be installed, got none; pip install 'semobridge-ext[cli]'")
    codes: dict[str, int] = {}
    # The rows themselves are read one folder after the other: two folders at once may not fit.
    found_codes = [Folder("report", path).label_codes(args.label, codes) for path in args.shards]
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
    chosen = report_figures.sample(len(labels), 0)
    found: dict[str, Any] = {
        "images": len(labels), "classes": len(codes), "shots": shots, "shot_classes": classes,
        "seeds": args.seeds, "sampled": len(chosen), "text_projection": singular, "folders": {},
        "environment": build_info(),
    }  # fmt: skip
    names = [path.resolve().name for path in args.shards]
    names = names if len(set(names)) == len(names) else [str(path) for path in args.shards]
    for name, path, given in zip(names, args.shards, found_codes, strict=True):
        print(f"measuring {name}", file=sys.stderr)
        found["folders"][name] = _measured(Folder("report", path), given, texts, chosen, shots, args.seeds)
    tables = _tables(found)
    _files.write_bytes(args.out, report_page.page(found, tables))
    for name, (header, lines) in tables.items():
        write_csv(args.out.with_name(f"{args.out.stem}_{name}.csv"), header, lines)
    write_json(args.out.with_suffix(".json"), found)
    print(f"{args.out}, {args.out.stem}_*.csv and {args.out.with_suffix('.json')}")
    return 0

"""`semobridge-ext search`: the images of a folder of shards nearest to images or texts."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from semobridge_ext import _files
from semobridge_ext.cli import models, queries, sheet
from semobridge_ext.cli.arguments import add_max_pixels, count
from semobridge_ext.cli.engine import add_engine, cluster_of
from semobridge_ext.cli.output import write_json
from semobridge_ext.cli.shards import Folder
from semobridge_ext.cli.tables import open_features
from semobridge_ext.retrieval.streamed import joined, topk_over

_DESCRIPTION = """\
Exact search by cosine, shard by shard, memory-mapped: the gallery is never in memory as a whole. The
model is the one that made the shards; behind `map`, queries pass the same mapping.
"""
_EPILOG = """\
SHARDS may be a .parquet file, a folder of such files or a .lance data set; where no settings.json names the
model, --model does. Scores are cosines. A text and an image have lower ones than two images (the
modality gap): compare scores within one query only. An image that is in the shards finds itself first.

examples:
  semobridge-ext search feats/ --text "alarm clock" "red flag"
  semobridge-ext search feats/ --image query.png -k 20 --out sheet.html
  semobridge-ext search feats-bridge/ --image a.png b.png --out sheet.png --json hits.json
  semobridge-ext search rows.parquet --model ViT-B-32 --pretrained openai --text "red flag"
"""


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "search",
        help="nearest images of shards to an image or a text, with a contact sheet",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shards", metavar="SHARDS", type=Path,
                        help="folder of extract or map; .parquet, .lance")  # fmt: skip
    parser.add_argument("--text", nargs="+", default=[], metavar="TEXT", help="texts to search for")
    parser.add_argument("--image", nargs="+", default=[], metavar="FILE", help="images to search for")
    parser.add_argument("-k", type=count, default=10, metavar="K", help="hits a query (default: 10)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="contact sheet, .png or .html")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the hits as JSON too")
    add_max_pixels(parser, "refused as queries, and empty frames in the sheet")
    models.add_maker(parser)
    add_engine(parser)


def _check(args: argparse.Namespace, folder: Folder) -> None:
    if not args.text and not args.image:
        raise ValueError(
            "search: --text or --image must be given, got neither; for example --text 'a red flag'"
        )
    if args.out is not None and args.out.suffix.lower() not in (".png", ".html"):
        raise ValueError(f"search: --out must end in .png or .html, got {args.out}; choose one of them")
    queries.check_model(folder)
    if args.text and (refusal := queries.text_refusal(folder, "--text", "--image")):
        raise ValueError(refusal)
    for name in args.image:
        if not Path(name).is_file():
            raise FileNotFoundError(f"search: --image must be an existing file, got {name}; check the name")


def _queries(args: argparse.Namespace, folder: Folder) -> Tensor:  # [N, D] unit rows
    """Texts, then images, in the space of the shards."""
    encoder = queries.QueryEncoder(folder, args.device)
    parts = []
    if args.text:
        parts.append(encoder.texts(args.text))
    if args.image:
        pixels = [encoder.pixels(name, name, args.max_pixels, "--image") for name in args.image]
        parts.append(encoder.images(pixels))
    return torch.cat(parts)


def _parts(folder: Folder, *, unit: bool) -> Iterator[tuple[int, int, int]]:
    """Shard, first row and end; raw rows pass through memory a block at a time to lose their lengths."""
    for index in folder.shards():
        if parts := folder.parts(index):
            yield from [(index, 0, parts[-1][2])] if unit else parts


def _best(args: argparse.Namespace, folder: Folder, queries: Tensor, unit: bool) -> tuple[Tensor, Tensor]:
    """Scores and row numbers, [N, k] each."""
    cluster, parts = cluster_of("search", args), _parts(folder, unit=unit)
    if cluster is not None:
        from semobridge_ext.ray.jobs import searched

        lists = searched(args.shards, parts, queries, args.k, unit=unit, cluster=cluster)
        return joined(len(queries), lists, args.k)
    rows = (folder.features(index)[first:end] for index, first, end in parts)
    return topk_over(queries, (part if unit else normalize(part.float(), dim=1) for part in rows), args.k)


def _records(folder: Folder, wanted: set[int]) -> dict[int, dict[str, Any]]:
    """The metadata of some rows; that of one shard in memory at a time."""
    found: dict[int, dict[str, Any]] = {}
    base = 0
    for index in folder.shards():
        size = folder.shape(index)[0]
        mine = sorted(row for row in wanted if base <= row < base + size)
        if mine:
            part = folder.records(index, [row - base for row in mine])
            found |= dict(zip(mine, part, strict=True))
        base += size
    return found


class Found(NamedTuple):
    """The best rows of every query, and the metadata of each of them."""

    scores: Tensor  # [N, k]
    rows: Tensor  # [N, k]
    records: dict[int, dict[str, Any]]
    seconds: float

    def shown(self, row: int) -> tuple[str, str]:
        """Path and label of one."""
        record = self.records[row]
        text = record.get("label") or record.get("caption") or ""
        return str(record.get("image_path", row)), str(text)


def perform(args: argparse.Namespace, features: Tensor | None = None) -> Found:
    """Searches for the words and images of the arguments, or for unit rows [N, D] in their place."""
    cluster_of("search", args)
    folder = open_features("search", args.shards)
    for index in folder.shards():
        folder.check_rows(index)
    folder.check_finished()
    models.name_maker(folder, args.model, args.pretrained)
    if features is None:
        _check(args, folder)
    asked = _queries(args, folder) if features is None else features
    queries.check_width(folder, asked)
    began = time.perf_counter()
    scores, found = _best(args, folder, asked, bool(folder.settings().get("normalized")))
    seconds = time.perf_counter() - began
    return Found(scores, found, _records(folder, set(found.reshape(-1).tolist())), seconds)


def run(args: argparse.Namespace) -> int:
    found = perform(args)
    names = [(text, False) for text in args.text] + [(image, True) for image in args.image]
    rows = []
    for (name, is_image), values, indices in zip(
        names, found.scores.tolist(), found.rows.tolist(), strict=True
    ):
        hits = [sheet.Hit(*found.shown(i), value) for value, i in zip(values, indices, strict=True)]
        rows.append(sheet.Row(name, is_image, hits))
        print(f"{name}")
        for rank, hit in enumerate(hits, 1):
            print(f"  {rank:>3}  {hit.score:6.3f}  {hit.label:<24}  {hit.path}")
    if args.json is not None:
        value = [{"query": row.query, "hits": [hit._asdict() for hit in row.hits]} for row in rows]
        write_json(args.json, value)
    if args.out is not None:
        html = args.out.suffix.lower() == ".html"
        limit = args.max_pixels
        data = sheet.page(rows, f"search in {args.shards}", limit) if html else sheet.png(rows, limit)
        _files.write_bytes(args.out, data)
        print(f"contact sheet: {args.out}")
    print(f"searched in {1000 * found.seconds:.1f} ms")
    return 0

"""`semobridge-ext retrieve`: retrieval metrics of shards with labels."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch

from semobridge_ext.cli.arguments import count
from semobridge_ext.cli.galleries import Side, pairs_of, read_side, shares
from semobridge_ext.cli.output import write_csv, write_json
from semobridge_ext.retrieval.metrics import retrieval_metrics

_DESCRIPTION = """\
Every image of the shards is a query and all others are the gallery, ranked by cosine; images of the
same label are relevant. Several folders give a table to compare, for example before and after `map`;
with --together they are one gallery, such as images and texts. --pairs says what is relevant where
labels cannot.
"""
_EPILOG = """\
reading it (per cent):
  mAP          mean average precision over the whole ranking
  mAP@R        over the first R places, R the number of relevant images of the query
  R-Precision  share of relevant images among the first R
  Recall@k     share of queries with a relevant image among the first k
Queries without any relevant image (labels with one image, images without a label) are left out and
counted. Ties have their expected value over all orders. The features are held in memory, float32.
With --together also the share of the images, and of the texts, among the first k of a ranking, beside
their shares of the gallery and of the relevant items (ties in the order of the rows).

texts:
  FOLDER/text_emb/text_emb_0.npy with its metadata, as clip-retrieval writes it. FOLDER/text_emb names
  the texts of a folder that holds images too.
tables:
  a .parquet file, a folder of them, or a .lance data set with a column of vectors named features,
  embedding or vector; the other columns are the metadata.
pairs:
  a CSV with a header that has query and gallery; a line for each pair, in any order, repeated ones
  count once. Values are row numbers from 0 (of the folders together, in their order), or with --key
  what that column of the metadata holds; a key of several rows stands for all of them.

examples:
  semobridge-ext retrieve feats/
  semobridge-ext retrieve feats/ feats-bridge/ feats-pca/ --csv retrieval.csv --json retrieval.json
  semobridge-ext retrieve gallery/ --queries queries/ --recall-at 1 10 100
  semobridge-ext retrieve images/ --queries captions/ --pairs pairs.csv --key image_path
  semobridge-ext retrieve images/ captions/ --together --queries questions/ --pairs pairs.csv
"""


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "retrieve",
        help="mAP, R-precision and recall of shards with labels",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "shards", metavar="SHARDS", type=Path, nargs="+", help="folders of extract or map; .parquet, .lance"
    )
    parser.add_argument("--queries", type=Path, metavar="SHARDS", help="take the queries from here instead")
    parser.add_argument(
        "--label", default="label", metavar="COLUMN", help="what must be equal (default: label)"
    )
    parser.add_argument("--together", action="store_true", help="rank all folders as one gallery")
    parser.add_argument(
        "--pairs", type=Path, metavar="FILE", help="CSV with query and gallery: the relevant items"
    )
    parser.add_argument("--key", metavar="COLUMN", help="what --pairs names items by (default: row numbers)")
    many = [1, 5, 10]
    parser.add_argument(
        "--recall-at", type=count, nargs="+", default=many, metavar="K", help="default: 1 5 10"
    )
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the table as CSV too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON too")


def perform(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The figures of every gallery, by the names of its folders."""
    if args.key is not None and args.pairs is None:
        raise ValueError(
            f"retrieve: --key must stand beside --pairs, got {args.key} alone; pass --pairs FILE"
        )
    ks = tuple(sorted(set(args.recall_at)))
    codes: dict[str, int] = {}
    query = None if args.queries is None else read_side(args, [args.queries], codes)
    figures: dict[str, dict[str, Any]] = {}
    for paths in [args.shards] if args.together else [[path] for path in args.shards]:
        # Read within the call: the rows of one gallery go before the next comes.
        figures[" + ".join(map(str, paths))] = _measured(args, query, read_side(args, paths, codes), ks)
    return figures


def run(args: argparse.Namespace) -> int:
    figures = perform(args)
    ks = sorted(set(args.recall_at))
    names = ["mAP", "mAP@R", "R-Precision", *(f"Recall@{k}" for k in ks)]
    wide = max(len(path) for path in figures)
    print(f"{'':<{wide}}  " + "  ".join(f"{name:>11}" for name in names))
    for path, found in figures.items():
        print(f"{path:<{wide}}  " + "  ".join(f"{100 * found[name]:>11.2f}" for name in names))
    last = figures[list(figures)[-1]]
    what = "image" if args.pairs is None else "item"
    told = f"{last['classes']} classes" if args.pairs is None else f"{last['pairs']} pairs"
    left = (
        f", {last['without_relevant']} without a relevant {what} left out" if last["without_relevant"] else ""
    )
    print(f"per cent; {last['queries']} queries, {last['gallery']} {what}s, {told}{left}")
    if args.together:
        _print_shares(last["shares"])
    columns = [*names, "queries", "without_relevant", "gallery", told.split()[-1], "width", "seconds"]
    if args.csv is not None:
        table = [[path, *(found[name] for name in columns)] for path, found in figures.items()]
        write_csv(args.csv, ["shards", *columns], table)
    if args.json is not None:
        write_json(args.json, figures)
    return 0


def _measured(
    args: argparse.Namespace, query: Side | None, gallery: Side, ks: tuple[int, ...]
) -> dict[str, Any]:
    asked, same_set = gallery if query is None else query, query is None
    pairs = None if args.pairs is None else pairs_of(args, asked, gallery)
    began = time.perf_counter()
    found = retrieval_metrics(
        asked.rows, gallery.rows, asked.labels, gallery.labels,
        relevant=pairs, same_set=same_set, recall_at=ks,
    )  # fmt: skip
    found["seconds"] = time.perf_counter() - began
    found |= {"gallery": len(gallery.rows), "width": gallery.rows.shape[1]}
    if gallery.labels is not None:
        found["classes"] = len(torch.unique(gallery.labels))
    if pairs is not None:
        found["pairs"] = len(torch.unique(pairs, dim=0))
    if args.together:
        found["shares"] = shares(asked, gallery, pairs, ks, same_set)
    return found


def _print_shares(found: dict[str, dict[str, float]]) -> None:
    columns = list(next(iter(found.values())))
    wide = max(len("share"), *(len(name) for name in found))
    print(f"{'share':<{wide}}  " + "  ".join(f"{name:>9}" for name in columns))
    for name, values in found.items():
        print(f"{name:<{wide}}  " + "  ".join(f"{100 * values[column]:>9.2f}" for column in columns))

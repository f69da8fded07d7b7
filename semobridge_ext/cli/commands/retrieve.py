"""`semobridge-ext retrieve`: retrieval metrics of shards with labels."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from semobridge_ext.cli.arguments import count
from semobridge_ext.cli.output import write_csv, write_json
from semobridge_ext.cli.shards import Folder
from semobridge_ext.retrieval.metrics import retrieval_metrics

_DESCRIPTION = """\
Every image of the shards is a query and all others are the gallery, ranked by cosine; images of the
same label are relevant. Several folders give a table to compare, for example before and after `map`.
"""
_EPILOG = """\
reading it (per cent):
  mAP          mean average precision over the whole ranking
  mAP@R        over the first R places, R the number of relevant images of the query
  R-Precision  share of relevant images among the first R
  Recall@k     share of queries with a relevant image among the first k
Queries without any relevant image (labels with one image, images without a label) are left out and
counted. Ties have their expected value over all orders. The features are held in memory, float32.

examples:
  semobridge-ext retrieve feats/
  semobridge-ext retrieve feats/ feats-bridge/ feats-pca/ --csv retrieval.csv --json retrieval.json
  semobridge-ext retrieve gallery/ --queries queries/ --recall-at 1 10 100
"""


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "retrieve",
        help="mAP, R-precision and recall of shards with labels",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shards", metavar="SHARDS", type=Path, nargs="+", help="folders of extract or map")
    parser.add_argument("--queries", type=Path, metavar="SHARDS", help="take the queries from here instead")
    parser.add_argument(
        "--label", default="label", metavar="COLUMN", help="what must be equal (default: label)"
    )
    many = [1, 5, 10]
    parser.add_argument(
        "--recall-at", type=count, nargs="+", default=many, metavar="K", help="default: 1 5 10"
    )
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the table as CSV too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON too")


def run(args: argparse.Namespace) -> int:
    ks = tuple(sorted(set(args.recall_at)))
    codes: dict[str, int] = {}
    query = None if args.queries is None else Folder("retrieve", args.queries).labelled(args.label, codes)
    figures: dict[str, dict[str, Any]] = {}
    for path in args.shards:
        rows, labels = Folder("retrieve", path).labelled(args.label, codes)
        theirs, mine = (rows, labels) if query is None else query
        began = time.perf_counter()
        found = retrieval_metrics(theirs, rows, mine, labels, same_set=query is None, recall_at=ks)
        figures[str(path)] = {
            **found, "gallery": len(rows), "width": rows.shape[1], "classes": len(set(labels.tolist())),
            "seconds": time.perf_counter() - began,
        }  # fmt: skip
    names = ["mAP", "mAP@R", "R-Precision", *(f"Recall@{k}" for k in ks)]
    wide = max(len(path) for path in figures)
    print(f"{'':<{wide}}  " + "  ".join(f"{name:>11}" for name in names))
    for path, found in figures.items():
        print(f"{path:<{wide}}  " + "  ".join(f"{100 * found[name]:>11.2f}" for name in names))
    last = figures[str(args.shards[-1])]
    left = (
        f", {last['without_relevant']} without a relevant image left out" if last["without_relevant"] else ""
    )
    print(f"per cent; {last['queries']} queries, {last['gallery']} images, {last['classes']} classes{left}")
    columns = [*names, "queries", "without_relevant", "gallery", "classes", "width", "seconds"]
    if args.csv is not None:
        table = [[path, *(found[name] for name in columns)] for path, found in figures.items()]
        write_csv(args.csv, ["shards", *columns], table)
    if args.json is not None:
        write_json(args.json, figures)
    return 0

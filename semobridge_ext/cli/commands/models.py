"""`semobridge-ext models`: which methods work on which models, found out here and now."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from semobridge_ext.cli.models import complete

_EPILOG = """\
Every architecture is built small, with its own classes and switches and random weights, and each method's
result is held against the model's own forward pass in float64. No weights are fetched.

reading it:
  works        equal to the plain program
  t_c alone    class texts without s_c: no matrix ends the text tower, so that nothing can be bridged
  refused      an error in words, whose reason stands below the table
  absent       the library of the model is not installed
  wrong        another result, or an error of another kind: please report it

examples:
  semobridge-ext models
  semobridge-ext models --model ViT-B-16-SigLIP2 --model PE-Core-B-16
  semobridge-ext models --csv > models.csv
"""


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "models",
        help="which methods work on which models, and why others refuse",
        description="Which methods work on which models of open_clip, transformers and OpenAI, and why not.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--model", action="append", metavar="NAME", help="this one; may be repeated (default: all)"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--csv", action="store_true", help="one line a model, with the reasons")
    form.add_argument("--markdown", action="store_true", help="the table of the documentation")
    form.add_argument("--docs", type=Path, metavar="PAGE", help="writes it between the marks of a page")


def run(args: argparse.Namespace) -> int:
    from semobridge_ext.cli.sweep import table

    known = table.names()
    wanted = known if not args.model else [complete("models", "--model", name, known) for name in args.model]

    def done(i: int, total: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{i} of {total}", end="\n" if i == total else "", file=sys.stderr, flush=True)

    rows = table.sweep(wanted, done=done)
    if args.docs is not None:
        table.write_docs(args.docs, rows)
        return 0
    render = table.as_csv if args.csv else table.as_markdown if args.markdown else table.as_text
    print(render(rows).rstrip("\n"))
    return 0

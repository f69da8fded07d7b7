"""Kinds of arguments that several commands take."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from semobridge_ext.cli.images import PIXELS
from semobridge_ext.cli.named.torchvision_set import Place

NAMED = "torchvision:NAME or hf:OWNER/NAME, also NAME[test]"


def count(word: str, least: int = 1) -> int:
    """A whole number from `least` up; argparse names the argument in the error."""
    try:
        value = int(word)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(f"must be a whole number from {least} up, got '{word}'")
    return value


def add_max_pixels(parser: argparse.ArgumentParser, what: str) -> None:
    """The limit of every command that decodes images; `what` happens to larger ones."""
    parser.add_argument(
        "--max-pixels", type=count, default=PIXELS, metavar="N",
        help=f"larger images are {what} (default: {PIXELS})",
    )  # fmt: skip


def input_first(words: Sequence[str]) -> list[str]:
    """The words with the value of --dataset in front, where INPUT stands."""
    found, rest = [], list(words)
    for i, word in enumerate(rest):
        if word == "--":
            break
        if word == "--dataset" and i + 1 < len(rest):
            found, rest = [rest[i + 1]], rest[:i] + rest[i + 2 :]
            break
        if word.startswith("--dataset="):
            found, rest = [word.partition("=")[2]], rest[:i] + rest[i + 1 :]
            break
    return found + rest


def add_input_dataset(parser: Any) -> None:
    """--dataset as another spelling of INPUT, and where data sets lie."""
    parser.dataset_is_input = True
    parser.add_argument("--dataset", metavar="NAME", help=f"in place of INPUT: {NAMED}")
    add_place(parser)


def add_place(parser: argparse.ArgumentParser) -> None:
    """Where data sets lie; `place_of` reads it."""
    parser.add_argument("--root", type=Path, metavar="FOLDER", help="where data sets by name lie")
    parser.add_argument("--download", action="store_true",
                        help="fetch a data set that is not there into --root")  # fmt: skip
    parser.add_argument("--split", type=Path, metavar="FILE.json",
                        help="train, val and test as CoOp's files have them")  # fmt: skip


def add_problem(parser: argparse.ArgumentParser) -> None:
    """What a study of data sets by name takes beside its model."""
    add_place(parser)
    text = "prompts by class, {class name: [sentence, ..]}, as CuPL's files have them"
    parser.add_argument("--prompts", type=Path, metavar="FILE.json", help=text)
    text = "around a class name, instead of the data set's own, as in 'a photo of a {}.'"
    parser.add_argument("--template", nargs="+", metavar="TEXT", help=text)
    cores = min(8, len(os.sched_getaffinity(0)))
    parser.add_argument("--workers", type=lambda w: count(w, 0), default=cores, metavar="N",
                        help=f"decoding processes; 0: in this one (default here: {cores})")  # fmt: skip
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def place_of(args: argparse.Namespace) -> Place:
    return Place(args.root, args.download, args.split)

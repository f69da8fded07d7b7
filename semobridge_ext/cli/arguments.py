"""Kinds of arguments that several commands take."""

from __future__ import annotations

import argparse

from semobridge_ext.cli.images import PIXELS


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

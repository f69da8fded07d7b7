"""Kinds of arguments that several commands take."""

from __future__ import annotations

import argparse


def count(word: str, least: int = 1) -> int:
    """A whole number from `least` up; argparse names the argument in the error."""
    try:
        value = int(word)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(f"must be a whole number from {least} up, got '{word}'")
    return value

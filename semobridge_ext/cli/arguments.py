"""Kinds of arguments that several commands take."""

from __future__ import annotations

import argparse


def count(word: str) -> int:
    """A whole number from 1 up; argparse names the argument in the error."""
    try:
        value = int(word)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 up, got '{word}'")
    return value

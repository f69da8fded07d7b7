"""Captions beside images: what `extract --captions` encodes into text_emb, row by row with img_emb.

A pair counts or does not: an image without a caption has no row, and stands in corrupt.tsv with the reason.
The captions of a shard are encoded together, so that their bits depend on the shard alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np

from semobridge_ext.cli.listing import CAPTION, CAPTION_CHARACTERS
from semobridge_ext.cli.models import Encoder
from semobridge_ext.cli.sources import Source

MISSING = "it has no caption"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    text = "encode captions into OUT/text_emb (clip-retrieval: --enable_text); images without are left out"
    parser.add_argument("--captions", action="store_true", help=text)
    text = f"the column that holds them (img2dataset: --caption_col; default: {CAPTION})"
    parser.add_argument("--caption-column", metavar="NAME", help=text)


def check_arguments(function: str, args: argparse.Namespace) -> None:
    """Refuses what does not go together, before anything is read."""
    if args.caption_column is not None and not args.captions:
        raise ValueError(
            f"{function}: --caption-column must stand beside --captions, got {args.caption_column} alone; "
            "add it"
        )
    if args.captions and args.before_projection:
        raise ValueError(
            f"{function}: --captions must stand with projected features, got --before-projection, whose "
            "rows no text can be compared with; leave one out"
        )


def columns_of(function: str, args: argparse.Namespace, source: Source) -> tuple[str, ...]:
    """Of the metadata, `caption` among them; refused where INPUT has no captions."""
    if not args.captions:
        return source.columns
    name = args.caption_column or CAPTION
    if name not in source.columns:
        raise ValueError(
            f"{function}: --captions must find captions in INPUT, got no column '{name}' in {args.input} "
            f"({', '.join(source.columns) or 'it has none'}); name it with --caption-column, or lay a .txt "
            "beside each image of a folder"
        )
    if name == CAPTION:
        return source.columns
    if CAPTION in source.columns:
        raise ValueError(
            f"{function}: --caption-column must be '{CAPTION}' where INPUT has that column, got '{name}'; "
            "rename one of them"
        )
    return (*source.columns, CAPTION)


class Captions:
    """The captions of a run: which there are, and their rows."""

    def __init__(self, encoder: Encoder, column: str | None, dtype: np.dtype, unit: bool) -> None:
        self._encoder, self._column = encoder, column or CAPTION
        self._dtype, self._unit = dtype, unit

    def taken(self, fields: dict[str, str | None]) -> tuple[dict[str, str | None], str]:
        """The fields with the caption under its own name, and what is against it."""
        caption = (fields.get(self._column) or "").strip()
        if len(caption) > CAPTION_CHARACTERS:
            return fields, f"its caption has more than {CAPTION_CHARACTERS} characters"
        return {**fields, CAPTION: caption}, "" if caption else MISSING

    def rows(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:  # -> [n, D], [n] bool
        """As they are stored, and which of them are finite then."""
        rows = self._encoder.texts(texts).numpy()
        if self._unit:
            rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        with np.errstate(over="ignore"):
            stored = rows.astype(self._dtype)
        return stored, np.isfinite(stored).all(axis=1)

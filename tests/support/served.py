"""Shards of a few drawings for the tests of `serve`: as extracted, and centred by role."""

from __future__ import annotations

from pathlib import Path

from tests.support.images import command, write

CLASSES, EACH = 5, 4


def make(home: Path, *, centred: bool = True) -> Path:
    """home/feats, and home/centred if it is asked for."""
    write(home / "images", CLASSES, EACH)
    words = ["--quiet", "--workers", 0, "--shard-size", 8]
    assert command("extract", home / "images", home / "feats", *words) == 0
    if centred:
        words = ["--mapping", "centering", "--dtype", "float32", "--quiet"]
        assert command("map", home / "feats", home / "centred", *words) == 0
    return home

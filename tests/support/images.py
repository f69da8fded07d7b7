"""Small folders of drawings for the commands that read images."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import semobridge_ext as sb
from semobridge_ext import cli


@cache
def _icons() -> sb.data.PictoDataset:
    return sb.load_picto("icons")


def write(folder: Path, classes: int = 4, each: int = 6) -> list[Path]:
    """`each` drawings of every class in a folder of its own; the paths in the order of extract."""
    from PIL import Image

    data, paths = _icons(), []
    for label in range(classes):
        home = folder / f"class_{label:02d}"
        home.mkdir(parents=True)
        for i, row in enumerate((data.labels == label).nonzero().squeeze(1)[:each].tolist()):
            paths.append(home / f"{i:03d}.png")
            Image.fromarray(data.images[row].numpy()).save(paths[-1])
    return sorted(paths)


def command(*words: object) -> int:
    return cli.main([str(word) for word in words])

"""A few small images of every class, within a bound on their bytes."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import NamedTuple

from semobridge_ext.cli import thumbnails
from semobridge_ext.cli.shards import Folder

SIDE, EACH = 72, 3
BYTES = 3_000_000  # of all data addresses: the page stays under 5 MB beside tables of 500 classes


class Samples(NamedTuple):
    """Data addresses of images by class, in the order of the classes, and what is not among them."""

    images: list[list[str]]
    unread: int  # files that are gone or damaged since
    full: bool  # whether the bound left images out


def paths(folder: Folder, label: str) -> list[str] | None:
    """Where the labelled images lie; None in a folder that does not say."""
    if "image_path" not in folder.table(folder.shards()[0]).column_names:
        return None
    both = zip(folder.column("image_path"), folder.column(label), strict=True)
    return [str(path) for path, value in both if value is not None]


def _address(path: str) -> str | None:
    image = thumbnails.opened_small(path, SIDE)
    if image is None:
        return None
    data = io.BytesIO()
    image.save(data, "JPEG", quality=72, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()


def samples(found: Sequence[str], labels: Sequence[int], classes: int) -> Samples:
    """EACH images a class, evenly from its rows; first one of every class, then the second ones."""
    rows: list[list[int]] = [[] for _ in range(classes)]
    for i, label in enumerate(labels):
        rows[label].append(i)
    images: list[list[str]] = [[] for _ in range(classes)]
    left, unread = BYTES, 0
    for turn in range(EACH):
        for c, mine in enumerate(rows):
            if turn >= min(EACH, len(mine)):
                continue
            address = _address(found[mine[(2 * turn + 1) * len(mine) // (2 * min(EACH, len(mine)))]])
            if address is None:
                unread += 1
            elif len(address) > left:
                return Samples(images, unread, True)
            else:
                left -= len(address)
                images[c].append(address)
    return Samples(images, unread, False)

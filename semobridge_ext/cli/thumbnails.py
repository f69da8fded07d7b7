"""Small pictures of images, wherever extract found them."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

from semobridge_ext.cli import images
from semobridge_ext.cli.tar_members import read_member

SIDE = 112  # pixels, of a contact sheet


def file_of(path: str) -> Any:
    """An image file, or a member of a tar as extract names it."""
    inside = re.match(r"(.*?\.(?:tar|tgz|tar\.gz))/(.+)", path)
    if inside and Path(inside[1]).is_file():
        return io.BytesIO(read_member(inside[1], inside[2]))
    return path


def opened_small(path: str, side: int, max_pixels: int = images.PIXELS) -> Any:
    """At most `side` pixels either way, on white; None where the file is gone, damaged or too large."""
    from PIL import Image

    try:
        with images.opened(file_of(path), max_pixels) as image:
            image = image.convert("RGBA")
            image.thumbnail((side, side))
    except Exception:  # PIL's plugins raise whatever their parsing meets
        return None
    page = Image.new("RGB", image.size, "white")
    page.paste(image, (0, 0), image)
    return page


def thumbnail(path: str, max_pixels: int = images.PIXELS) -> Any:
    """SIDE pixels, on white; an empty frame where the file cannot be shown."""
    from PIL import Image

    page = Image.new("RGB", (SIDE, SIDE), "white")
    image = opened_small(path, SIDE, max_pixels)
    if image is None:
        page.paste((235, 235, 235), (1, 1, SIDE - 1, SIDE - 1))
        return page
    page.paste(image, ((SIDE - image.width) // 2, (SIDE - image.height) // 2))
    return page

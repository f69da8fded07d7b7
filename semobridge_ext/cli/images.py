"""Images from strangers: bounded before they are decoded, upright, and in eight bits a channel.

What a model's preprocessing gets right is left to it: palettes, CMYK and transparency reach it as they are.
What it gets wrong is mended here: it ignores the EXIF orientation, and clips values of more than eight bits.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np

PIXELS = 89_478_485  # Pillow's own bound: 256 MiB in RGB
_RATIO = 256  # a strip is scaled until its short side fits the model: 224 x 57344 pixels at this ratio
_ROWS = 256  # scaled at once


@contextmanager
def opened(file: Any, most: int = PIXELS) -> Iterator[Any]:
    """The first frame of a path, a binary file or a PIL image as a PIL image, open within the block.

    A PIL image stays open, and as large as it was. ValueError for what is refused, and whatever Pillow's
    parsers raise.
    """
    from PIL import Image

    bound = Image.MAX_IMAGE_PIXELS
    try:
        Image.MAX_IMAGE_PIXELS = most  # above twice of it Pillow itself refuses
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about EXIF, palettes and sizes, one an image
            own = not isinstance(file, Image.Image)
            with Image.open(file) if own else nullcontext(file) as image:
                _check(image, most, own)
                image.load()
                yield _upright(image, _eight_bits(image))
    finally:
        Image.MAX_IMAGE_PIXELS = bound


def _check(image: Any, most: int, may_shrink: bool) -> None:
    if image.format == "EPS":
        raise ValueError("it is EPS, which Pillow would hand to Ghostscript")
    width, height = image.size
    if max(width, height) > _RATIO * min(width, height):
        raise ValueError(f"it has {width} x {height} pixels, a strip beyond 1:{_RATIO}")
    if width * height > most and may_shrink and not image.info.get("progressive"):
        # JPEG alone: half the side, a quarter of the memory. Of a progressive one the decoder keeps all.
        image.draft(None, (width // 2, height // 2))
    if image.width * image.height > most:
        raise ValueError(f"it has {width} x {height} pixels, more than the limit of {most} (--max-pixels)")


def _eight_bits(image: Any) -> Any:
    """Grey of 16 bits scaled by 1/257, of floats in [0, 1] by 255; other images as they are."""
    from PIL import Image

    if image.mode != "F" and image.mode != "I" and not image.mode.startswith("I;16"):
        return image
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    top = 1 if image.mode == "F" else 65535
    if not (low >= 0 and high <= top):  # NaN too
        raise ValueError(f"it holds grey values from {low:g} to {high:g}, and only 0 to {top} can be scaled")
    grey = np.empty(values.shape, np.uint8)
    for i in range(0, len(grey), _ROWS):
        grey[i : i + _ROWS] = np.rint(values[i : i + _ROWS].astype(np.float64) * (255 / top))
    return Image.fromarray(grey)


def _upright(image: Any, pixels: Any) -> Any:
    """The pixels as the EXIF orientation of the image says; a damaged EXIF says nothing."""
    from PIL.Image import Transpose

    try:
        orientation = image.getexif().get(0x0112)
    except Exception:  # its parser raises whatever it meets, and the pixels are sound
        return pixels
    turned = {
        2: Transpose.FLIP_LEFT_RIGHT, 3: Transpose.ROTATE_180, 4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE, 6: Transpose.ROTATE_270, 7: Transpose.TRANSVERSE, 8: Transpose.ROTATE_90,
    }  # fmt: skip
    if orientation not in turned:
        return pixels
    upright = pixels.transpose(turned[orientation])
    if "transparency" in pixels.info:
        upright.info["transparency"] = pixels.info["transparency"]
    return upright

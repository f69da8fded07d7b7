"""Contact sheets of search results: a PNG, or one HTML file that holds its thumbnails."""

from __future__ import annotations

import base64
import html
import io
import re
from pathlib import Path
from typing import Any, NamedTuple

from semobridge_ext.cli import images
from semobridge_ext.cli.tar_members import read_member

SIDE, MARGIN, LINE = 112, 8, 26


class Hit(NamedTuple):
    path: str
    label: str
    score: float


class Row(NamedTuple):
    """One query: its text, or the path of its image, and what was found."""

    query: str
    is_image: bool
    hits: list[Hit]


def file_of(path: str) -> Any:
    """An image file, or a member of a tar as extract names it."""
    inside = re.match(r"(.*?\.(?:tar|tgz|tar\.gz))/(.+)", path)
    if inside and Path(inside[1]).is_file():
        return io.BytesIO(read_member(inside[1], inside[2]))
    return path


def thumbnail(path: str, max_pixels: int = images.PIXELS) -> Any:
    """SIDE pixels, on white; an empty frame where the file is gone, damaged or too large."""
    from PIL import Image

    page = Image.new("RGB", (SIDE, SIDE), "white")
    try:
        with images.opened(file_of(path), max_pixels) as image:
            image = image.convert("RGBA")
            image.thumbnail((SIDE, SIDE))
    except Exception:  # PIL's plugins raise whatever their parsing meets
        page.paste((235, 235, 235), (1, 1, SIDE - 1, SIDE - 1))
        return page
    page.paste(image, ((SIDE - image.width) // 2, (SIDE - image.height) // 2), image)
    return page


def _fit(text: str, pen: Any, width: int) -> str:
    while text and pen.textlength(text) > width:
        text = text[:-2] + "…" if len(text) > 2 else ""
    return text


def png(rows: list[Row], max_pixels: int = images.PIXELS, lead: str = "query: ") -> bytes:
    """A grid, one line a query: the query behind its lead, then its hits with scores."""
    from PIL import Image, ImageDraw

    columns = 1 + max(len(row.hits) for row in rows)
    wide, high = SIDE + MARGIN, SIDE + LINE + MARGIN
    page = Image.new("RGB", (columns * wide + 3 * MARGIN, len(rows) * high + MARGIN), "white")
    pen = ImageDraw.Draw(page)
    for i, row in enumerate(rows):
        top = MARGIN + i * high
        if row.is_image:
            page.paste(thumbnail(row.query, max_pixels), (MARGIN, top))
            pen.rectangle(
                (MARGIN - 2, top - 2, MARGIN + SIDE + 1, top + SIDE + 1), outline="#D55E00", width=2
            )
        caption = f"{lead}{Path(row.query).name if row.is_image else row.query}"
        words, line, y = caption.split(), "", top + (SIDE + 2 if row.is_image else 0)
        for word in [*words, None]:
            if word is not None and pen.textlength(f"{line} {word}") <= SIDE:
                line = f"{line} {word}".strip()
                continue
            pen.text((MARGIN, y), _fit(line, pen, SIDE), fill="#222222")
            line, y = word or "", y + 12
        for j, hit in enumerate(row.hits):
            left = 3 * MARGIN + (j + 1) * wide
            page.paste(thumbnail(hit.path, max_pixels), (left, top))
            pen.rectangle((left - 1, top - 1, left + SIDE, top + SIDE), outline="#CCCCCC")
            pen.text((left, top + SIDE + 1), f"{hit.score:.3f}", fill="#222222")
            pen.text(
                (left, top + SIDE + 12), _fit(hit.label or Path(hit.path).name, pen, SIDE), fill="#666666"
            )
    data = io.BytesIO()
    page.save(data, "PNG")
    return data.getvalue()


def _embedded(path: str, max_pixels: int) -> str:
    data = io.BytesIO()
    thumbnail(path, max_pixels).save(data, "PNG")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


def page(rows: list[Row], title: str, max_pixels: int = images.PIXELS) -> bytes:
    """One HTML file without references to others."""
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><title>", html.escape(title), "</title><style>",
        "body{font:14px sans-serif;margin:24px;color:#222}section{display:flex;flex-wrap:wrap;gap:10px}",
        f"figure{{margin:0;width:{SIDE}px}}img{{border:1px solid #ccc}}figcaption{{font-size:12px;",
        "overflow-wrap:anywhere;color:#555}h2{font-size:16px;margin:24px 0 8px}.q img{border-color:#D55E00}",
        "</style><h1>", html.escape(title), "</h1>",
    ]  # fmt: skip
    for row in rows:
        name = Path(row.query).name if row.is_image else row.query
        parts += ["<h2>", html.escape(name), "</h2><section>"]
        if row.is_image:
            parts.append(
                f'<figure class=q><img src="{_embedded(row.query, max_pixels)}" alt=query>'
                "<figcaption>query</figcaption></figure>"
            )
        for hit in row.hits:
            caption = html.escape(hit.label or Path(hit.path).name)
            parts.append(
                f'<figure><img src="{_embedded(hit.path, max_pixels)}" alt="{caption}" '
                f'title="{html.escape(hit.path)}">'
                f"<figcaption>{hit.score:.3f} {caption}</figcaption></figure>"
            )
        parts.append("</section>")
    return "".join(parts).encode()

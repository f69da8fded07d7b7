"""Contact sheets of search results: a PNG, or one HTML file that holds its thumbnails."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import NamedTuple

from semobridge_ext.cli import fonts, images
from semobridge_ext.cli.report_charts import text
from semobridge_ext.cli.report_page import document
from semobridge_ext.cli.thumbnails import SIDE, thumbnail

MARGIN, LINE = 8, 26
_SIZE, _BASE, _STEP = 11, 10, 12  # of a line of text, in pixels


class Hit(NamedTuple):
    path: str
    label: str
    score: float


class Row(NamedTuple):
    """One query: its text, or the path of its image, and what was found."""

    query: str
    is_image: bool
    hits: list[Hit]


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
        first = top + (SIDE + 2 if row.is_image else 0)
        room = (top + SIDE + LINE - first) // _STEP
        for k, line in enumerate(fonts.lines(caption, SIDE, _SIZE, room)):
            fonts.draw(pen, (MARGIN, first + _BASE + k * _STEP), line, _SIZE, "#222222")
        for j, hit in enumerate(row.hits):
            left = 3 * MARGIN + (j + 1) * wide
            page.paste(thumbnail(hit.path, max_pixels), (left, top))
            pen.rectangle((left - 1, top - 1, left + SIDE, top + SIDE), outline="#CCCCCC")
            below = top + SIDE + 2 + _BASE
            fonts.draw(pen, (left, below), f"{hit.score:.3f}", _SIZE, "#222222")
            name = fonts.fitted(fonts.escaped(hit.label or Path(hit.path).name), SIDE, _SIZE)
            fonts.draw(pen, (left, below + _STEP), name, _SIZE, "#555555")
    data = io.BytesIO()
    page.save(data, "PNG")
    return data.getvalue()


def _embedded(path: str, max_pixels: int) -> str:
    data = io.BytesIO()
    thumbnail(path, max_pixels).save(data, "PNG")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


def page(rows: list[Row], title: str, max_pixels: int = images.PIXELS) -> bytes:
    """One HTML file without references to others."""
    parts = []
    for row in rows:
        parts += [f"<h2>{text(Path(row.query).name if row.is_image else row.query)}</h2><div class=hits>"]
        if row.is_image:
            parts.append(
                f'<figure class=q><img src="{_embedded(row.query, max_pixels)}" alt=query>'
                "<figcaption>query</figcaption></figure>"
            )
        for hit in row.hits:
            # The caption names the image; read out twice it would only be longer.
            caption = text(hit.label or Path(hit.path).name)
            parts.append(
                f'<figure><img src="{_embedded(hit.path, max_pixels)}" alt="" title="{text(hit.path)}">'
                f"<figcaption>{hit.score:.3f} <bdi>{caption}</bdi></figcaption></figure>"
            )
        parts.append("</div>")
    return document(title, parts)

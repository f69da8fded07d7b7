"""Charts as HTML and SVG: their labels keep the size of the text at every width, and every name its script.

A plot's curves stand in an SVG of 100 x 100 units that stretches; strokes and dots do not stretch with it.
Each chart is one image to a screen reader; the table that follows it holds the numbers.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

SERIES = 7  # colours; the eighth folder begins again


class Dot(NamedTuple):
    """A figure of one folder with its interval, in the unit of the axis."""

    name: str
    value: float
    low: float
    high: float


def text(value: Any) -> str:
    """Escaped for HTML; control characters and halves of characters are shown by their code."""
    shown = "".join(
        c if c.isprintable() or c == " " else c.encode("unicode_escape").decode() for c in str(value)
    )
    return html.escape(shown)


def name(value: Any) -> str:
    """A name in its own direction: one from right to left leaves the sentence around it in order."""
    return f"<bdi>{text(value)}</bdi>"


def colour(i: int) -> str:
    return f"var(--c{i % SERIES})"


def decimals(low: float, high: float, most: int = 4) -> int:
    """As many as half the interval has: one digit of it, two where the first is 1.

    More where an end beside 0 would be shown as 0, and an interval that leaves 0 out not look so.
    """
    half = abs(high - low) / 2
    if not math.isfinite(half) or half < 1e-9:
        return min(1, most)
    power = math.floor(math.log10(half))
    places = min(max(-power + (half < 2 * 10.0**power), 0), most)
    while low * high > 0 and places < most and round(min(abs(low), abs(high)), places) == 0:
        places += 1
    return places


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Round numbers in [low, high]."""
    raw = max(high - low, 1e-9) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(s * power for s in (1, 2, 5, 10) if s * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    count = math.floor(high / step + 1e-9) - first + 1
    return [round((first + i) * step, 9) for i in range(count)]


def _span(values: Sequence[float], least: float) -> tuple[float, float]:
    """A range that holds all values with some air, and is never narrower than `least`."""
    low, high = min(values), max(values)
    air = max(0.08 * (high - low), (least - (high - low)) / 2)
    return low - air, high + air


def dots(label: str, entries: Sequence[Dot], *, least: float = 0.5) -> str:
    """One line a folder: its interval, its value, and a dotted line at the first one's value."""
    low, high = _span([v for e in entries for v in (e.low, e.value, e.high)], least)

    def at(value: float) -> str:
        return f"{100 * (value - low) / (high - low):.2f}%"

    lines, told = [], []
    for i, e in enumerate(entries):
        value = f"{e.value:.{decimals(e.low, e.high)}f}"
        told.append(f"{e.name} {value}")
        width = f"{100 * (e.high - e.low) / (high - low):.2f}%"
        lines.append(
            f"<div class=row><span class=name>{name(e.name)}</span><span class=track>"
            f'<i class=base style="left:{at(entries[0].value)}"></i>'
            f'<i class=span style="left:{at(e.low)};width:{width};background:{colour(i)}"></i>'
            f'<i class=dot style="left:{at(e.value)};background:{colour(i)}"></i></span>'
            f"<span class=num>{value}</span></div>"
        )
    marks = "".join(f'<b style="left:{at(t)}">{t:g}</b>' for t in ticks(low, high))
    return (
        f'<div class="chart dots" role=img aria-label="{text(label)}: {text(", ".join(told))}">'
        f'{"".join(lines)}<div class="row scale"><span class=name></span><span class=track>{marks}</span>'
        f"<span></span></div><p class=axis>{text(label)}</p></div>"
    )


class Axis(NamedTuple):
    """A range, and where its labels stand."""

    low: float
    high: float
    marks: list[tuple[float, str]]

    def at(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return 100 * min(max(share, 0.0), 1.0)


def linear(low: float, high: float, about: int = 4) -> Axis:
    return Axis(low, high, [(t, f"{t:g}") for t in ticks(low, high, about)])


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.2f} {100 - y:.2f}" for x, y in points)


def plot(label: str, x: Axis, y: Axis, marks: Sequence[str]) -> str:
    """A frame with a grid and labels around what `curve`, `points` and `area` made."""
    grid = "".join(f'<path class=grid d="M0 {100 - y.at(v):.2f}H100"/>' for v, _ in y.marks)
    labels = [f'<b class=y style="top:{100 - y.at(v):.2f}%">{text(t)}</b>' for v, t in y.marks]
    labels += [f'<b class=x style="left:{x.at(v):.2f}%">{text(t)}</b>' for v, t in x.marks]
    return (
        f'<div class=plot role=img aria-label="{text(label)}"><svg viewBox="0 0 100 100" '
        f"preserveAspectRatio=none aria-hidden=true>{grid}{''.join(marks)}</svg>{''.join(labels)}</div>"
    )


def curve(x: Axis, y: Axis, points: Sequence[tuple[float, float]], stroke: str, dash: str = "") -> str:
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<path d="{_path([(x.at(a), y.at(b)) for a, b in points])}" stroke="{stroke}"{dashed} />'


def points(x: Axis, y: Axis, entries: Sequence[tuple[float, Dot]], stroke: str) -> str:
    """Dots with upright intervals, joined."""
    parts = [curve(x, y, [(at, e.value) for at, e in entries], stroke)]
    for at, e in entries:
        parts.append(curve(x, y, [(at, e.low), (at, e.high)], stroke))
        # A round dot of fixed size: a stroke without length and with round ends.
        parts.append(
            f'<path class=dot d="M{x.at(at):.2f} {100 - y.at(e.value):.2f}h.001" stroke="{stroke}"/>'
        )
    return "".join(parts)


def area(x: Axis, y: Axis, edges: Sequence[float], heights: Sequence[float], fill: str) -> str:
    """A histogram's outline down to the axis."""
    steps = [(edges[0], 0.0)]
    for i, value in enumerate(heights):
        steps += [(edges[i], value), (edges[i + 1], value)]
    steps.append((edges[-1], 0.0))
    drawn = _path([(x.at(a), y.at(b)) for a, b in steps])
    return f'<path class=fill d="{drawn}Z" fill="{fill}" stroke="{fill}"/>'


def key(names: Sequence[str], colours: Sequence[str]) -> str:
    """The legend: a list that wraps, so that no name is cut."""
    lines = (
        f'<li><i style="background:{c}"></i><span>{name(n)}</span></li>'
        for n, c in zip(names, colours, strict=True)
    )
    return f"<ul class=key>{''.join(lines)}</ul>"

"""Pages of the command line: one HTML file that refers to nothing outside of it, and the report's own."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from semobridge_ext.cli import report_charts as charts
from semobridge_ext.cli import report_tables as tables
from semobridge_ext.cli.page_style import LIGHT, STYLE
from semobridge_ext.cli.report_charts import name, text
from semobridge_ext.cli.report_figures import BINS, CONFIDENCE
from semobridge_ext.cli.report_images import Samples

COLOURS = tuple(LIGHT[f"c{i}"] for i in range(charts.SERIES))
_OPEN = 24  # classes whose images are shown at once; the others open on demand
_CORRUPT = 100  # corrupt files on the page; the CSV has all


def picture(draw: Callable[[Any], None], wide: float, high: float) -> str:
    """An SVG by matplotlib as a data address: as an image its element names meet no others."""
    # The object interface: pyplot would pick a window system and keep global state.
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(wide, high), layout="constrained")
    FigureCanvasSVG(figure)
    draw(figure)
    data = io.BytesIO()
    with rc_context({"svg.hashsalt": "semobridge-ext"}):  # the same page for the same figures
        figure.savefig(data, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(data.getvalue()).decode()


def table(header: Sequence[str], rows: Sequence[Sequence[Any]], kind: str = "", caption: str = "") -> str:
    """A table that scrolls by itself where the screen is narrow; `rows` may hold `tables.Cell`."""

    def cell(i: int, value: Any) -> str:
        if isinstance(value, tables.Cell):
            small = f" <small>{text(value.small)}</small>" if value.small else ""
            return f"<td{' class=words' if value.words else ''}>{text(value.main)}{small}</td>"
        shown = f"{value:.2f}" if isinstance(value, float) else text("" if value is None else value)
        return f"<th scope=row><bdi>{shown}</bdi></th>" if i == 0 else f"<td>{shown}</td>"

    head = "".join(f"<th scope=col>{text(title)}</th>" for title in header)
    body = "".join("<tr>" + "".join(cell(i, v) for i, v in enumerate(row)) + "</tr>" for row in rows)
    label = text(caption or ", ".join(h for h in header if h))
    told = f"<caption>{text(caption)}</caption>" if caption else ""
    # In reach of the keyboard, without which what lies outside of the screen cannot be scrolled to.
    return (
        f'<div class=scroll role=region tabindex=0 aria-label="{label}"><table class="{kind}">{told}'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def document(title: str, parts: Sequence[str], foot: str = "") -> bytes:
    """A page of its own: title, style, and parts that are HTML already."""
    shown = text(title)
    head = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{shown}</title><style>{STYLE}</style></head>"
        f"<body><a class=skip href=#main>Skip to the content</a><header><h1>{shown}</h1></header>"
        "<main id=main tabindex=-1>"
    )
    end = f"</main>{f'<footer>{foot}</footer>' if foot else ''}</body></html>"
    return (head + "".join(parts) + end).encode()


def _retrieval(found: dict[str, Any]) -> Iterator[str]:
    few = found["asked"] < found["images"]
    who = f"{found['asked']} images, drawn once for all folders, ask" if few else "Every image asks"
    yield (
        f"<p>{who}; all others are the gallery; equal labels are relevant. The scale does not begin "
        "at 0, so that small differences show; the dotted line is the first folder.</p>"
    )
    entries = [charts.Dot(n, *(100 * v for v in f["intervals"]["mAP"])) for n, f in found["folders"].items()]
    yield charts.dots("mAP, % with 95 % interval", entries)
    caption = "Retrieval in per cent; small: 95 % interval over queries"
    yield table(*tables.retrieval(found), caption=caption)


def _changes(found: dict[str, Any]) -> Iterator[str]:
    base = next(iter(found["folders"]))
    yield (
        f"<p>Each folder minus {name(base)}, on the same resampled images, so that what both share cancels. "
        f"* marks a {100 * CONFIDENCE:.0f} % interval that leaves 0 out; the others may be chance.</p>"
    )
    yield table(*tables.changes(found), caption="Differences from the first folder, with 95 % intervals")


def _accuracy(found: dict[str, Any]) -> Iterator[str]:
    yield (
        f"<p>Nearest class mean, mean ± standard deviation over {found['seeds']} draws of the shots, on the "
        f"{found['shot_classes']} classes with more than {max(found['shots'])} images. Zero-shot: the "
        "nearest class text over all classes, so it is not on the same scale.</p>"
    )
    names, shots = list(found["folders"]), found["shots"]
    entries = {
        n: [tables.spread(n, f["accuracy"][str(k)]) for k in shots] for n, f in found["folders"].items()
    }
    values = [v for row in entries.values() for e in row for v in (e.low, e.high)]
    x = charts.Axis(-0.5, len(shots) - 0.5, [(i, str(k)) for i, k in enumerate(shots)])
    y = charts.linear(max(0.0, min(values) - 2), min(100.0, max(values) + 2))
    marks = []
    for i, n in enumerate(names):
        beside = (i - (len(names) - 1) / 2) * min(0.08, 0.6 / len(names))
        at = [(j + beside, e) for j, e in enumerate(entries[n])]
        marks.append(charts.points(x, y, at, charts.colour(i)))
    yield "<div class=chart>" + charts.key(names, [charts.colour(i) for i in range(len(names))])
    yield charts.plot("Accuracy in per cent by shots per class; the table below has it", x, y, marks)
    begins = f", from {y.low:.0f} on" if y.low > 0 else ""
    yield f"<p class=axis>across: shots per class; up: accuracy, %{begins}</p></div>"
    yield table(*tables.accuracy(found), caption="Accuracy in per cent, mean ± standard deviation")


def _cosines(found: dict[str, Any]) -> Iterator[str]:
    yield (
        f"<p>Over all pairs of {found['sampled']} images; overlap is the shared area of both histograms. The "
        "gap is the distance of the mean unit image and the mean unit text.</p>"
    )
    folders = found["folders"]
    edges = [-1 + 2 * i / BINS for i in range(BINS + 1)]
    shown = [
        i for f in folders.values() for k in ("intra", "inter")
        for i, v in enumerate(f["cosines"][k]) if v > 1e-4
    ]  # fmt: skip
    x = charts.linear(edges[min(shown)], edges[max(shown) + 1])
    top = max(v for f in folders.values() for k in ("intra", "inter") for v in f["cosines"][k])
    y = charts.linear(0, 1.05 * top, 3)
    yield charts.key(["one class", "two classes"], [charts.colour(0), charts.colour(1)])
    yield "<div class=panels>"
    for n, f in folders.items():
        c, overlap = f["cosines"], tables.estimate(f["intervals"]["overlap"], 100)
        marks = [charts.area(x, y, edges, c[k], charts.colour(i)) for i, k in ((1, "inter"), (0, "intra"))]
        yield f"<div><h3>{name(n)}</h3>"
        yield charts.plot(f"{n}: histogram of cosines, overlap {overlap.main} per cent", x, y, marks)
        yield "</div>"
    yield "</div><p class=axis>across: cosine; up: share of the pairs</p>"
    yield table(*tables.cosines(found), caption="Cosines; small: 95 % interval over images")


def _spectra(found: dict[str, Any]) -> Iterator[str]:
    yield "<p>Variance along principal directions; the effective rank is exp of their entropy.</p>"
    names = list(found["folders"])
    shares = [f["spectrum"]["shares"] for f in found["folders"].values()]
    yield charts.key(names, [charts.colour(i) for i in range(len(names))]) + "<div class=panels>"
    powers = [(float(-e), f"1e-{e}" if e else "1") for e in range(0, 7, 2)]
    x, y = charts.linear(1, max(2, *map(len, shares))), charts.Axis(-6, 0, powers)
    marks = [
        charts.curve(x, y, tables.logarithms(s), charts.colour(i), ("", "7 4", "2 3")[i % 3])
        for i, s in enumerate(shares)
    ]
    yield "<div><h3>Features</h3>" + charts.plot("Share of the variance by direction", x, y, marks)
    yield "<p class=axis>across: principal direction; up: share of the variance</p></div>"
    if values := found.get("text_projection"):
        x, y = charts.linear(1, max(2, len(values))), charts.linear(0, 1.05 * max(values))
        cut = charts.curve(x, y, [(x.low, 0.3), (x.high, 0.3)], charts.colour(1), "7 4")
        marks = [charts.curve(x, y, list(enumerate(values, 1)), charts.colour(0)), cut]
        yield "<div><h3>Text projection W</h3>" + charts.plot("Singular values of W", x, y, marks)
        yield "<p class=axis>across: index; up: singular value; dashed: the bridge's cut-off, 0.3</p></div>"
    yield "</div>" + table(*tables.spectra(found), caption="Spectra; small: 95 % interval")


def _worst(found: dict[str, Any]) -> Iterator[str]:
    base = next(iter(found["folders"]))
    yield (
        "<p>How many of a class's images have one of their own class as the nearest other image, the worst "
        f"of {name(base)} first, and the classes that the others lie next to there. Images that ask.</p>"
    )
    yield table(*tables.worst(found), "words", "Worst classes and what they are taken for")


def _sample_images(found: dict[str, Any], shown: Samples) -> Iterator[str]:
    notes = ["Up to three images of each class, evenly from its rows."]
    if shown.unread:
        notes.append(f"{shown.unread} files could not be opened where the shards say they lie.")
    if shown.full:
        notes.append("The size of this file is bounded: some classes show fewer images, or none.")
    yield f"<p>{' '.join(notes)}</p>"
    lines = []
    for title, addresses in zip(found["class_names"], shown.images, strict=True):
        # The class's name stands below: a reader needs it once, and the number tells images apart.
        images = "".join(f'<img src="{a}" alt="image {i}">' for i, a in enumerate(addresses, 1))
        if addresses:
            lines.append(f"<li>{images}<span>{name(title)}</span></li>")
    yield f"<ul class=kinds>{''.join(lines[:_OPEN])}</ul>"
    if rest := lines[_OPEN:]:
        more = f"<ul class=kinds>{''.join(rest)}</ul>"
        yield f"<details><summary>{len(rest)} more classes</summary>{more}</details>"


def _corrupt(found: dict[str, Any]) -> Iterator[str]:
    lost = found["corrupt"]
    more = f" The first {_CORRUPT} are shown; the CSV file has all." if len(lost) > _CORRUPT else ""
    many = "1 file" if len(lost) == 1 else f"{len(lost)} files"
    yield f"<p>{many} could not be read when the features were made: in no figure.{more}</p>"
    yield table(["file", "why"], lost[:_CORRUPT], "text", "Corrupt files")


def page(found: dict[str, Any], shown: Samples | None = None) -> bytes:
    """The whole report; `report_tables` also writes what it says to CSV files."""
    sections: list[tuple[str, Iterator[str]]] = [("Retrieval", _retrieval(found))]
    if len(found["folders"]) > 1:
        sections.append(("Differences", _changes(found)))
    if found["shots"]:
        sections.append(("Accuracy by shots", _accuracy(found)))
    sections.append(("Worst classes", _worst(found)))
    if shown is not None and (any(shown.images) or shown.unread):
        sections.append(("Sample images", _sample_images(found, shown)))
    sections += [("Cosines within and between classes", _cosines(found)), ("Spectra", _spectra(found))]
    if found["corrupt"]:
        sections.append(("Corrupt files", _corrupt(found)))
    told = "As the runs recorded them; a resumed run counts its last part."
    timings = table(*tables.timings(found), caption="Time of the runs that made the folders")
    sections.append(("Timings", iter([f"<p>{told}</p>", timings])))
    backend = table(["", "value"], tables.backend(found), "text", "What was installed where this was made")
    sections.append(("Installation", iter([backend])))
    parts = [
        f"<p>{found['images']} images, {found['classes']} classes; the first row, "
        f"<b>{name(next(iter(found['folders'])))}</b>, is what the others are compared with.</p>",
        f"<p class=soft>Made {text(found['made'])} with semobridge-ext {text(found['version'])}.</p>",
        '<nav aria-label="Sections"><ul>',
        *(f"<li><a href=#part-{i}>{title}</a></li>" for i, (title, _) in enumerate(sections)),
        "</ul></nav>",
    ]
    for i, (title, content) in enumerate(sections):
        parts += [f"<section aria-labelledby=part-{i}><h2 id=part-{i}>{title}</h2>", *content, "</section>"]
    return document("semobridge-ext report", parts)

"""What `semobridge-ext reproduce` writes: a table, a CSV, a picture and a page, ours beside the published."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

from semobridge_ext import _files
from semobridge_ext.cli import report_page
from semobridge_ext.cli.output import write_csv
from semobridge_ext.cli.reproduction.published import (
    FIGURES,
    MEAN_SHOTS,
    PROTOCOLS,
    Figure,
    figure_of,
)

Record = dict[str, Any]
DASH = "–"
MEANS = (
    "A published figure is a mean over the data sets of its paper: compare it with a mean over the same ones."
)
_ALL_SHOTS = {1, 2, 4, 8, 16}


class Row(NamedTuple):
    """One measure of one method, on one set or as a mean over sets."""

    set: str
    method: str
    measure: str
    shots: int | str
    seeds: int
    ours: float | None  # fraction
    std: float | None  # over seeds
    published: Figure | None
    detail: str


class Study(NamedTuple):
    """A finished study."""

    protocol: str
    model: str  # in words
    key: str | None  # the papers' name of it
    notes: list[str]
    settings: list[str]
    records: list[Record]


def overall(sets: int) -> str:
    return f"mean of {sets} data sets" if sets > 1 else "mean of 1 data set"


def _mean_rows(study: Study, measure: str) -> list[Row]:
    """Means over sets of each method; the spread is that of the means over seeds."""
    sets = list(dict.fromkeys(r["set"] for r in study.records))
    name, by_method = overall(len(sets)), {}  # type: str, dict[str, dict[int, dict[int, list[float]]]]
    for r in study.records:
        by_method.setdefault(r["method"], {}).setdefault(r["shots"], {}).setdefault(r["seed"], []).append(
            r[measure]
        )
    rows = []
    for method, by_shots in by_method.items():
        means: dict[int, list[float]] = {}
        for shots, by_seed in sorted(by_shots.items()):
            # A draw counts where every set has it.
            means[shots] = [fmean(values) for values in by_seed.values() if len(values) == len(sets)]
            if means[shots]:
                rows.append(_row(study, name, method, measure, shots, means[shots]))
        whole = all(means.get(k) for k in _ALL_SHOTS)
        if whole and len({len(means[k]) for k in _ALL_SHOTS}) == 1:
            over = [fmean(values) for values in zip(*(means[k] for k in sorted(_ALL_SHOTS)), strict=True)]
            rows.append(_row(study, name, method, measure, MEAN_SHOTS, over))
    shown = {row[1:4] for row in rows}
    lone = [
        Row(name, f.method, measure, f.shots, 0, None, None, f, "")
        for f in FIGURES[study.protocol]
        if f.model == study.key and f.measure == measure and (f.method, measure, f.shots) not in shown
    ]
    methods = list(dict.fromkeys(row.method for row in rows + lone))
    return sorted(rows + lone, key=lambda row: (methods.index(row.method), _order(row.shots)))


def _order(shots: int | str) -> float:
    return float("inf") if isinstance(shots, str) else shots


def _row(
    study: Study, name: str, method: str, measure: str, shots: int | str, values: Sequence[float],
    detail: str = "", *, single: bool = False,
) -> Row:  # fmt: skip
    figure = None if single else figure_of(study.protocol, study.key, measure, method, shots)
    spread = stdev(values) if len(values) > 1 else None
    return Row(name, method, measure, shots, len(values), fmean(values), spread, figure, detail)


def rows_of(study: Study) -> list[Row]:
    """The means first, then every set."""
    measures = PROTOCOLS[study.protocol].measures
    rows = [row for measure in measures for row in _mean_rows(study, measure)]
    groups: dict[tuple[str, str, str, int], list[Record]] = {}
    for r in study.records:
        for measure in measures:
            groups.setdefault((r["set"], measure, r["method"], r["shots"]), []).append(r)
    for (name, measure, method, shots), found in groups.items():
        values, detail = [r[measure] for r in found], str(found[0].get("detail", ""))
        rows.append(_row(study, name, method, measure, shots, values, detail, single=True))
    return rows


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


# -- text --------------------------------------------------------------------------------------------


def _percent(row: Row) -> str:
    if row.ours is None:
        return DASH
    return f"{100 * row.ours:.2f}" + ("" if row.std is None else f" ± {100 * row.std:.2f}")


def _published(row: Row) -> str:
    return DASH if row.published is None else f"{row.published.value:g}"


def _shots(row: Row) -> str:
    return {0: DASH, MEAN_SHOTS: "mean"}.get(row.shots, str(row.shots))


def _cells(row: Row) -> list[str]:
    source = DASH if row.published is None else row.published.source
    return [row.method, _shots(row), row.measure, _percent(row), _published(row), source]


HEADER = ["method", "shots", "measure", "ours, %", "published, %", "published in"]
_SET_HEADER = ["set", "method", "shots", "measure", "ours, %", "detail"]


def _said(study: Study) -> list[tuple[str, list[str]]]:
    protocol = PROTOCOLS[study.protocol]
    return [
        ("Protocol", [_sentence(protocol.says), MEANS]),
        ("Known of the published programs", list(protocol.flaws) or ["nothing that moves their figures"]),
        ("Different here", list(protocol.differs)),
        ("Data", study.notes),
        ("Settings", study.settings),
    ]


def as_markdown(study: Study, rows: Iterable[Row]) -> str:
    """Means beside the published ones, then every set."""
    rows = list(rows)
    sets = {r["set"] for r in study.records}
    means = [row for row in rows if row.set == overall(len(sets))]
    lines = [f"# {study.protocol}, {study.model}", ""]
    for title, told in _said(study):
        lines += [f"## {title}", "", *(f"- {line}" for line in told), ""]
    lines += [f"## {overall(len(sets)).capitalize()}", "", *_table(HEADER, map(_cells, means)), ""]
    single = [[row.set, *_cells(row)[:4], row.detail] for row in rows if row.set in sets]
    return "\n".join([*lines, "## Every data set", "", *_table(_SET_HEADER, single), ""])


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    body = ["| " + " | ".join(row) + " |" for row in rows]
    return ["| " + " | ".join(header) + " |", "|---" * len(header) + "|", *body]


def table_text(study: Study, rows: Iterable[Row]) -> str:
    """What the command prints."""
    sets = {r["set"] for r in study.records}
    means = [_cells(row) for row in rows if row.set == overall(len(sets))]
    return "\n".join([f"{overall(len(sets))}, {study.model}:", *_table(HEADER, means)])


# -- files -------------------------------------------------------------------------------------------


def write(out: Path, study: Study) -> list[Row]:
    """reproduce.csv, .md, .png and report.html."""
    rows = rows_of(study)
    header = ["set", "model", "method", "measure", "shots", "seeds", "ours", "std", "published", "source",
              "detail"]  # fmt: skip

    def percent(value: float | None) -> str:
        return "" if value is None else f"{100 * value:.6g}"

    lines = [
        [row.set, study.model, row.method, row.measure, row.shots, row.seeds, percent(row.ours),
         percent(row.std), "" if row.published is None else f"{row.published.value:g}",
         "" if row.published is None else row.published.source, row.detail]
        for row in rows
    ]  # fmt: skip
    write_csv(out / "reproduce.csv", header, lines)
    _files.write_text(out / "reproduce.md", as_markdown(study, rows))
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    figure = Canvas(figsize=(7.5, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure, study, rows)
    _files.write_figure(out / "reproduce.png", figure, dpi=130)
    _files.write_bytes(out / "report.html", page(study, rows))
    return rows


def draw(figure: Any, study: Study, rows: Sequence[Row]) -> None:
    """The first measure's means: lines over shots, or bars; published figures as hollow marks."""
    axis = figure.subplots()
    sets = {r["set"] for r in study.records}
    measure, name = PROTOCOLS[study.protocol].measures[0], overall(len(sets))
    mine = [row for row in rows if row.set == name and row.measure == measure and row.shots != MEAN_SHOTS]
    methods = list(dict.fromkeys(row.method for row in mine))
    shots = sorted({int(row.shots) for row in mine})
    place = {k: i for i, k in enumerate(shots)}
    for i, method in enumerate(methods):
        colour, own = report_page.COLOURS[i % 7], [row for row in mine if row.method == method]
        ours = [row for row in own if row.ours is not None]
        theirs = [row for row in own if row.published is not None]
        spread = [100 * (row.std or 0) for row in ours] if any(row.std for row in ours) else None
        values = [100 * (row.ours or 0) for row in ours]
        if len(shots) > 1:
            at = [place[int(row.shots)] + 0.02 * i for row in ours]
            axis.errorbar(at, values, spread, color=colour, marker="o", ms=4, capsize=2.5, label=method)
            where = [place[int(row.shots)] + 0.02 * i for row in theirs]
        elif ours:
            axis.bar([i], values, yerr=spread, color=colour, width=0.6, capsize=2.5)
            axis.annotate(f"{values[0]:.1f}", (i, values[0]), ha="right", va="bottom", fontsize=9)
        if len(shots) <= 1:
            where = [i] * len(theirs)
        marks = [row.published.value for row in theirs if row.published is not None]
        edge = colour if len(shots) > 1 else "#222222"  # seen on a bar, too
        axis.plot(where, marks, "D", mfc="white", mec=edge, mew=1.5, ms=8, ls="none", zorder=3)
    if any(row.published is not None for row in mine):
        axis.plot([], [], "D", mfc="none", mec="#222222", ms=8, ls="none", label="published")
    if len(shots) > 1:
        axis.set_xticks(range(len(shots)), [str(k) for k in shots])
        axis.set_xlabel("shots per class")
    else:
        axis.set_xticks(range(len(methods)), methods)
    axis.set(ylabel=f"{measure}, %", title=f"{name}, {study.model}")
    if axis.get_legend_handles_labels()[0]:
        axis.legend(frameon=False, fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", color="#DDDDDD", linewidth=0.7)
    axis.set_axisbelow(True)


def page(study: Study, rows: Sequence[Row]) -> bytes:
    """One HTML file that refers to nothing outside of it."""
    sets = {r["set"] for r in study.records}
    source = report_page.picture(lambda figure: draw(figure, study, rows), 7.5, 4.2)
    says = _sentence(PROTOCOLS[study.protocol].says)
    parts = [f"<p>{html.escape(says)} {html.escape(MEANS)}</p>"]
    parts += [f"<h2>{html.escape(overall(len(sets)).capitalize())}</h2>"]
    parts += [f'<img src="{source}" alt="ours and published">']
    means = [list(_cells(row)) for row in rows if row.set == overall(len(sets))]
    parts += [report_page.table(HEADER, means)]
    for title, told in _said(study)[1:]:
        lines = "".join(f"<li>{html.escape(line)}</li>" for line in told)
        parts += [f"<h2>{title}</h2><ul>{lines}</ul>"]
    single = [[row.set, *_cells(row)[:4], row.detail] for row in rows if row.set in sets]
    parts += ["<h2>Every data set</h2>", report_page.table(_SET_HEADER, single)]
    known = [[f.model, f.method, "" if f.shots == 0 else f.shots, f.measure, f"{f.value:g}", f.source]
             for f in FIGURES[study.protocol]]  # fmt: skip
    head = ["model", "method", "shots", "measure", "%", "source"]
    parts += ["<h2>All published figures of this protocol</h2>", report_page.table(head, known)]
    return report_page.document(f"{study.protocol}: ours beside the published figures", parts)

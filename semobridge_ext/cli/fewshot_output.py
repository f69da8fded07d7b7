"""Tables and the picture of `semobridge-ext fewshot`."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from semobridge_ext import _files
from semobridge_ext.cli import fonts
from semobridge_ext.fewshot.study import paired
from semobridge_ext.fewshot.study_estimators import METHODS

Record = dict[str, Any]  # set, shots, seed, method, accuracy, seconds_fit, seconds_tune
MEAN = "mean over sets"
BASELINE = "nearest class mean"
_PANEL, _ENTRY, _LINE = 4.6, 2.2, 0.19  # inches: a panel's width, a legend entry's, a legend line's height


def _spread(values: Sequence[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0


def collect(records: Iterable[Record]) -> dict[str, dict[int, dict[str, dict[int, Record]]]]:
    """set -> shots -> method -> seed -> record, with the mean over sets where all sets have it."""
    table: dict[str, dict[int, dict[str, dict[int, Record]]]] = {}
    for r in records:
        table.setdefault(r["set"], {}).setdefault(r["shots"], {}).setdefault(r["method"], {})[r["seed"]] = r
    sets = list(table)
    if len(sets) < 2:
        return table
    mean: dict[int, dict[str, dict[int, Record]]] = {}
    for shots in sorted({k for s in sets for k in table[s]}):
        if not all(shots in table[s] for s in sets):
            continue
        for method in METHODS:
            cells = [table[s][shots].get(method) for s in sets]
            if any(cell is None for cell in cells):
                continue
            for seed in set.intersection(*(set(cell) for cell in cells if cell is not None)):
                rows = [cell[seed] for cell in cells if cell is not None]
                keys = ("accuracy", "seconds_fit", "seconds_tune")
                average = {key: fmean(r[key] for r in rows) for key in keys}
                mean.setdefault(shots, {}).setdefault(method, {})[seed] = {**rows[0], **average, "set": MEAN}
    return {**table, **({MEAN: mean} if mean else {})}


def summary(records: Iterable[Record]) -> list[dict[str, Any]]:
    """One row per set, shots and method: mean, spread, paired difference from the baseline, seconds."""
    rows = []
    for name, by_shots in collect(records).items():
        for shots, by_method in sorted(by_shots.items()):
            for method in METHODS:
                if method not in by_method:
                    continue
                runs = by_method[method]
                accuracies = [runs[s]["accuracy"] for s in sorted(runs)]
                row = {
                    "set": name, "shots": shots, "method": method, "seeds": len(runs),
                    "accuracy": fmean(accuracies), "std": _spread(accuracies),
                    "seconds_fit": fmean(r["seconds_fit"] for r in runs.values()),
                    "seconds_tune": fmean(r["seconds_tune"] for r in runs.values()),
                }  # fmt: skip
                base = by_method.get(BASELINE, {})
                shared = sorted(set(runs) & set(base))
                if shared:
                    row["gain"], row["gain_std"] = paired(
                        [runs[s]["accuracy"] for s in shared], [base[s]["accuracy"] for s in shared]
                    )
                rows.append(row)
    return rows


def as_csv(rows: Sequence[dict[str, Any]]) -> str:
    figures = ("accuracy", "std", "gain", "gain_std", "seconds_fit", "seconds_tune")
    fields = ("set", "shots", "method", "seeds", *figures)
    out = io.StringIO()
    writer = csv.DictWriter(out, fields, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
    return out.getvalue()


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
    body = ["| " + " | ".join(line) + " |" for line in lines]
    return ["| " + " | ".join(head) + " |", "|---" * len(head) + "|", *body]


def _percent(mean: float, std: float, sign: str = "") -> str:
    return f"{100 * mean:{sign}.1f} ± {100 * std:.1f}"


def as_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """A table per set: accuracy in % ± standard deviation over seeds, and below it paired gains."""
    lines: list[str] = []
    for name in dict.fromkeys(r["set"] for r in rows):
        mine = [r for r in rows if r["set"] == name]
        shots = sorted({r["shots"] for r in mine})
        cell = {(r["method"], r["shots"]): r for r in mine}
        head = [f"{k} shots" for k in shots]
        accuracies, gains = [], []
        for method in (m for m in METHODS if any((m, k) in cell for k in shots)):
            found = [cell.get((method, k), {}) for k in shots]
            last = [r for r in found if r][-1]
            seconds = [f"{last['seconds_fit']:.2f}", f"{last['seconds_tune']:.2f}"]
            values = [_percent(r["accuracy"], r["std"]) if r else "–" for r in found]
            accuracies.append([method, *values, *seconds])
            if method != BASELINE and any("gain" in r for r in found):
                values = [_percent(r["gain"], r["gain_std"], "+") if "gain" in r else "–" for r in found]
                gains.append([method, *values])
        lines += [f"### {name}", "", *_table(["method", *head, "fit s", "tune s"], accuracies), ""]
        if gains:  # the baseline may be left out
            table = _table(["method", *head], gains)
            lines += [f"Paired difference from {BASELINE}, points:", "", *table, ""]
    return "\n".join(lines)


def findings(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Sentences on what the figures show, gains and losses alike, from the mean (or the only set)."""
    names = list(dict.fromkeys(r["set"] for r in rows))
    name = MEAN if MEAN in names else names[0]
    cell = {(r["method"], r["shots"]): r for r in rows if r["set"] == name}
    sentences = []
    questions = (
        ("SeMoBridge, no blend", "nearest class mean", "Bridging the shots alone changes accuracy by"),
        ("SeMoBridge", "blend without bridge", "In the tuned blend, the bridge is worth"),
        ("SeMoBridge", "SeMoBridge, untuned", "Tuning the blend is worth"),
        ("SeMoBridge-T", "SeMoBridge", "Training is worth"),
        ("SeMoBridge-T", "SeMoBridge-T, no text losses", "The text losses are worth"),
        ("SeMoBridge-T", "SeMoBridge-T, no bias", "The class bias is worth"),
        ("SeMoBridge", "Tip-Adapter", "Against Tip-Adapter, the closed form gains"),
        ("GDA", "LDA", "Against LDA on image features, GDA gains"),
        ("GDA", "SeMoBridge", "Against the closed form, GDA gains"),
        ("ProKeR", "SeMoBridge", "Against the closed form, ProKeR gains"),
        ("LP++", "SeMoBridge-T", "Against SeMoBridge-T, LP++ gains"),
        ("ProLIP", "SeMoBridge-T", "Against SeMoBridge-T, ProLIP gains"),
        ("SeMoBridge", "LDA", "Against LDA on image features, the closed form gains"),
    )
    for ours, other, words in questions:
        shots = sorted(k for m, k in cell if m == ours and (other, k) in cell)
        if not shots:
            continue
        gains = [f"{100 * (cell[ours, k]['accuracy'] - cell[other, k]['accuracy']):+.1f}" for k in shots]
        counts = "/".join(str(k) for k in shots)
        sentences.append(f"{words} {', '.join(gains)} points at {counts} shots ({name}).")
    return sentences


def draw(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """One panel per set: accuracy against shots, the main methods strong, the ablations thin."""
    from matplotlib import colormaps, rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(r["set"] for r in rows))
    across = min(3, len(names))
    down = -(-len(names) // across)
    methods = [m for m in METHODS if any(r["method"] == m for r in rows)]
    columns = max(1, int(_PANEL * across / _ENTRY))
    legend = _LINE * -(-len(methods) // columns)
    titles, families = fonts.for_matplotlib(names)
    with rc_context({"font.family": families}):
        figure = Figure(figsize=(_PANEL * across, 3.6 * down + legend + 0.2), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(down, across, squeeze=False)
        for axis in axes.flat[len(names) :]:
            axis.set_visible(False)
        lines: dict[str, Any] = {}
        for axis, name, title in zip(axes.flat, names, titles, strict=False):
            _panel(axis, [r for r in rows if r["set"] == name], methods, colormaps["tab20"], lines)
            axis.set_title(title, wrap=True)
        # Constrained layout keeps room for a legend outside of the panels: none of it is cut.
        shown = [m for m in methods if m in lines]
        figure.legend(
            [lines[m] for m in shown], shown, loc="outside lower center", ncols=columns, fontsize=8,
            frameon=False,
        )  # fmt: skip
        _files.write_figure(path, figure, file_format="png", dpi=110)


def _panel(
    axis: Any, mine: Sequence[dict[str, Any]], methods: Sequence[str], colours: Any, lines: dict[str, Any]
) -> None:
    """One set's curves; `lines` collects what the legend shows."""
    for method in methods:
        i = list(METHODS).index(method)
        line = sorted((r for r in mine if r["method"] == method), key=lambda r: r["shots"])
        if not line:
            continue
        means, spreads = zip(*((100 * r["accuracy"], 100 * r["std"]) for r in line), strict=True)
        # Ablations have a comma in their name.
        style: dict[str, Any] = {"lw": 1, "ls": ":"} if ", " in method else {"lw": 2, "ls": "-"}
        style |= {"color": colours(i % 20), "marker": "os^vDPX"[i % 7], "ms": 4, "capsize": 2}
        lines[method] = axis.errorbar([r["shots"] for r in line], means, spreads, **style)
    shots = sorted({r["shots"] for r in mine})
    axis.set_xscale("log", base=2)
    axis.set_xticks(shots, [str(k) for k in shots])
    axis.set(xlabel="shots per class", ylabel="test accuracy, %")

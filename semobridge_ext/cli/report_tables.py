"""The report's tables: for the page, with as many digits as an interval allows, and for CSV, with all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any, NamedTuple

from semobridge_ext.cli.report_charts import Dot, decimals
from semobridge_ext.cli.report_figures import CHANGES

METRICS = ("mAP", "mAP@R", "R-Precision", "Recall@1", "Recall@5", "Recall@10")
_FRACTIONS = ("mAP", "Recall@1", "overlap")  # in per cent
_WORST = 10

Table = tuple[list[str], list[list[Any]]]


class Cell(NamedTuple):
    """A figure and, smaller beside it, its interval; `words` wrap."""

    main: str
    small: str = ""
    words: bool = False


def _digits(value: float, places: int, sign: str = "") -> str:
    shown = f"{value:{sign}.{places}f}"
    return shown.replace("-", "−") if float(shown) else f"{0:.{places}f}"  # no minus before nothing


def estimate(interval: Sequence[float], factor: float = 1, sign: str = "") -> Cell:
    value, low, high = (factor * v for v in interval)
    places = decimals(low, high)
    return Cell(
        _digits(value, places, sign), f"[{_digits(low, places, sign)}, {_digits(high, places, sign)}]"
    )


def spread(name: str, values: Sequence[float]) -> Dot:
    """Mean and one standard deviation either way, in per cent."""
    mean, std = 100 * fmean(values), 100 * (stdev(values) if len(values) > 1 else 0.0)
    return Dot(name, mean, mean - std, mean + std)


def logarithms(shares: Sequence[float]) -> list[tuple[float, float]]:
    return [(i, math.log10(max(s, 1e-12))) for i, s in enumerate(shares, 1)]


def retrieval(found: dict[str, Any]) -> Table:
    rows: list[list[Any]] = []
    for name, f in found["folders"].items():
        # The others are means over the same queries: about as sure as mAP.
        low, high = (100 * v for v in f["intervals"]["mAP"][1:])
        places = decimals(low, high)
        cells = [
            estimate(f["intervals"][m], 100) if m in f["intervals"]
            else Cell(_digits(100 * f["retrieval"][m], places))
            for m in METRICS
        ]  # fmt: skip
        rows.append([name, *cells, f["retrieval"]["queries"]])
    return ["folder", *METRICS, "queries"], rows


def changes(found: dict[str, Any]) -> Table:
    base, *others = found["folders"]
    rows: list[list[Any]] = []
    for figure in CHANGES:
        line: list[Any] = [f"{figure}, points" if figure in _FRACTIONS else figure]
        for name in others:
            interval = found["folders"][name]["change"][figure]
            cell = estimate(interval, 100 if figure in _FRACTIONS else 1, "+")
            sure = interval[1] > 0 or interval[2] < 0
            line.append(Cell(cell.main + (" *" if sure else ""), cell.small))
        rows.append(line)
    for k in found["shots"]:
        first = found["folders"][base]["accuracy"][str(k)]
        line = [f"accuracy with {k} shot{'s' * (k != 1)}, points"]
        for name in others:
            mine = found["folders"][name]["accuracy"][str(k)]
            e = spread(name, [a - b for a, b in zip(mine, first, strict=True)])
            places = decimals(e.low, e.high, 2)
            line.append(Cell(_digits(e.value, places, "+"), f"± {(e.high - e.low) / 2:.{places}f}"))
        rows.append(line)
    return ["figure", *others], rows


def accuracy(found: dict[str, Any]) -> Table:
    rows: list[list[Any]] = []
    for name, f in found["folders"].items():
        line: list[Any] = [name]
        for k in found["shots"]:
            e = spread(name, f["accuracy"][str(k)])
            places = decimals(e.low, e.high, 2)
            line.append(Cell(_digits(e.value, places), f"± {(e.high - e.low) / 2:.{places}f}"))
        zero = f["zero_shot"]
        rows.append([*line, Cell("–" if zero is None else f"{100 * zero:.1f}")])
    return ["folder", *(f"{k} shot{'s' * (k != 1)}" for k in found["shots"]), "zero-shot"], rows


def cosines(found: dict[str, Any]) -> Table:
    rows: list[list[Any]] = []
    for name, f in found["folders"].items():
        i, gap = f["intervals"], f["gap"]
        rows.append(
            [name, estimate(i["intra-class cosine"]), estimate(i["inter-class cosine"]),
             estimate(i["overlap"], 100), Cell("–" if gap is None else f"{gap:.3f}")]
        )  # fmt: skip
    return ["folder", "mean within", "mean between", "overlap, %", "modality gap"], rows


def spectra(found: dict[str, Any]) -> Table:
    rows = [[n, f["width"], estimate(f["intervals"]["effective rank"])] for n, f in found["folders"].items()]
    return ["folder", "width", "effective rank"], rows


def timings(found: dict[str, Any]) -> Table:
    def seconds(value: float | None) -> Cell:
        return Cell("–" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}")

    rows: list[list[Any]] = []
    for name, f in found["folders"].items():
        made, count, took, rate = f["run"]
        cells = [Cell("–" if v is None else f"{v:.0f}") for v in (count, rate)]
        took_here = seconds(f["retrieval"]["seconds"])
        rows.append([name, Cell(str(made)), cells[0], seconds(took), cells[1], took_here])
    return ["folder", "made by", "rows", "seconds", "rows/s", "retrieval here, s"], rows


def backend(found: dict[str, Any]) -> list[list[Any]]:
    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return "; ".join(f"{key}: {v}" for key, v in value.items())
        return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value

    return [[key, plain(value)] for key, value in found["environment"].items() if key != "openmp"]


def worst(found: dict[str, Any]) -> Table:
    folders = list(found["folders"])
    rows: list[list[Any]] = []
    for row in found["by_class"][:_WORST]:
        right = [Cell(f"{row['right'][f]} of {row['images']}") for f in folders]
        taken = ", ".join(f"{other} ({many})" for other, many in row["confused"])
        rows.append([row["name"], *right, Cell(taken or "–", words=True)])
    return ["class", *folders, "nearest instead"], rows


def for_csv(found: dict[str, Any]) -> dict[str, Table]:
    """Header and rows by name of the file; fractions in per cent, nothing rounded."""
    folders, shots = found["folders"].items(), found["shots"]
    base = next(iter(found["folders"].values()))["retrieval"]["mAP"]

    def bounds(f: dict[str, Any], name: str, factor: float = 1) -> list[float]:
        return [factor * v for v in f["intervals"][name][1:]]

    def measured(f: dict[str, Any]) -> list[Any]:
        both = [spread("", f["accuracy"][str(k)]) for k in shots]
        zero = None if f["zero_shot"] is None else 100 * f["zero_shot"]
        return [*(v for e in both for v in (e.value, e.high - e.value)), zero]

    shot_columns = [c for k in shots for c in (f"{k} shot{'s' * (k != 1)} %", f"{k} std")]
    return {
        "retrieval": (
            ["folder", *(f"{m} %" for m in METRICS), "mAP change", "queries", "mAP low", "mAP high"],
            [[n, *(100 * f["retrieval"][m] for m in METRICS), 100 * (f["retrieval"]["mAP"] - base),
              f["retrieval"]["queries"], *bounds(f, "mAP", 100)] for n, f in folders],
        ),
        "differences": (
            ["folder", "figure", "difference", "low", "high"],
            [[n, figure, *f["change"][figure]] for n, f in folders if "change" in f for figure in CHANGES],
        ),
        "accuracy": (["folder", *shot_columns, "zero-shot %"], [[n, *measured(f)] for n, f in folders]),
        "classes": (
            ["class", "images", *(f"right in {n}" for n, _ in folders), "nearest instead"],
            [[r["name"], r["images"], *r["right"].values(), ", ".join(f"{o} ({m})" for o, m in r["confused"])]
             for r in found["by_class"]],
        ),
        "cosines": (
            ["folder", "mean within", "mean between", "overlap %", "modality gap", "overlap low",
             "overlap high"],
            [[n, f["cosines"]["intra_mean"], f["cosines"]["inter_mean"], 100 * f["cosines"]["overlap"],
              f["gap"], *bounds(f, "overlap", 100)] for n, f in folders],
        ),
        "spectra": (
            ["folder", "width", "effective rank"],
            [[n, f["width"], f["spectrum"]["effective_rank"]] for n, f in folders],
        ),
        "corrupt": (["file", "why"], found["corrupt"]),
        "timings": (
            ["folder", "made by", "rows", "seconds", "rows/s", "retrieval here, s"],
            [[n, *f["run"], f["retrieval"]["seconds"]] for n, f in folders],
        ),
        "backend": (["", "value"], backend(found)),
    }  # fmt: skip

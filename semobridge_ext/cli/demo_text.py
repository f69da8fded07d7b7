"""The demo's words: tables, and three sentences that say what the figures show, whichever way they fall."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from semobridge_ext.cli.demo_fewshot import BASELINE, CONTROL, METHODS
from semobridge_ext.cli.demo_retrieval import NATIVE

NOTES = {method: " (control)" if method == CONTROL else "" for method in METHODS}
_ALIKE = 0.05  # a ratio this near to one is no difference


def listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def plural(k: int | str) -> str:
    return f"{k} shot" if int(k) == 1 else f"{k} shots"


def _points(difference: dict[str, Any]) -> str:
    return f"{100 * difference['mean']:+.1f} points"


def _gain(difference: dict[str, Any]) -> bool:
    return difference["beyond_noise"] and difference["mean"] > 0


def _loss(difference: dict[str, Any]) -> bool:
    return difference["beyond_noise"] and difference["mean"] < 0


# -- the three sentences -------------------------------------------------------------------------------


def helped(mean: dict[str, Any], where: str, retrieval: dict[str, Any]) -> str:
    """The best row of the last column, and the map that held-out classes chose."""
    k = str(mean["shots"][-1])
    base = mean["accuracy"][BASELINE][k]["mean"]
    best = max(METHODS[1:], key=lambda m: mean["accuracy"][m][k]["mean"])
    difference = mean["differences"][f"{best} - {BASELINE}"][k]
    got = f"{best} gets {100 * mean['accuracy'][best][k]['mean']:.1f} %"
    if _gain(difference):
        first = f"with {plural(k)} a class {got} where zero-shot gets {100 * base:.1f} % ({where})"
    else:
        first = (
            f"no few-shot method is above zero-shot's {100 * base:.1f} % beyond noise; with {plural(k)} a "
            f"class the best, {got} ({where})"
        )
    gains = []
    for name, figures in retrieval.items():
        native = next(row for row in figures["rows"] if row["method"] == NATIVE)
        row = next(row for row in figures["rows"] if row["method"] == figures["chosen"])
        if _gain(row["difference"]):
            gains.append(f"{row['method']} {100 * native['mAP']:.1f} to {100 * row['mAP']:.1f} mAP on {name}")
    if gains:
        second = f"the map that held-out classes chose lifts retrieval of unseen classes ({listed(gains)})"
    else:
        second = "in retrieval no map that held-out classes chose gains beyond noise"
    return f"What helped: {first}; {second}."


def did_not_help(mean: dict[str, Any], retrieval: dict[str, Any]) -> str:
    """Everything that gains nothing beyond noise, losses with their name."""
    k = str(mean["shots"][-1])
    nothing, lost = [], []
    for pair, rows in mean["differences"].items():
        ours, other = pair.split(" - ")
        against = {CONTROL: "the same blend without the bridge"}.get(other, other)
        told = f"{ours} against {against} ({_points(rows[k])})"
        if _loss(rows[k]):
            lost.append(told)
        elif not _gain(rows[k]):
            nothing.append(told)
    for name in dict.fromkeys(row["method"] for figures in retrieval.values() for row in figures["rows"]):
        if name == NATIVE:
            continue
        found = [
            row["difference"]
            for figures in retrieval.values()
            for row in figures["rows"]
            if row["method"] == name
        ]
        if any(_gain(d) for d in found):
            continue
        changes = ", ".join(f"{100 * d['mean']:+.1f}" for d in found)
        told = f"{name} in retrieval ({changes} mAP)"
        (lost if any(_loss(d) for d in found) else nothing).append(told)
    parts = []
    if nothing:
        parts.append(f"no difference beyond noise with {plural(k)} for {listed(nothing)}")
    if lost:
        parts.append(f"a loss beyond noise for {listed(lost)}")
    if not parts:
        return "What did not help: nothing; everything that was tried gains beyond noise."
    return f"What did not help: {'; '.join(parts)}."


def _ratio(row: dict[str, Any]) -> str:
    ratio = row["ratio"]
    if abs(ratio - 1) <= _ALIKE:
        return f"{row['what']}: as fast"
    return f"{row['what']}: {times(ratio)} {'×' if ratio > 1 else 'times slower'}"


def times(ratio: float) -> str:
    """A ratio, or its inverse where ours is the slower one."""
    value = ratio if ratio >= 1 else 1 / ratio
    return f"{value:.0f}" if value >= 9.95 else f"{value:.1f}"


def error(value: float) -> str:
    return f"{value:.0e}" if value else "0"


def how_fast(speed: Iterable[dict[str, Any]]) -> str:
    rows = list(speed)
    worst = max(row["error"] for row in rows)
    told = "; ".join(_ratio(row) for row in rows)
    return (
        f"How much faster than the plain programs of this run: {told}; the largest error is {error(worst)}."
    )


def sentences(
    mean: dict[str, Any], where: str, retrieval: dict[str, Any], speed: Sequence[dict[str, Any]]
) -> list[str]:
    """What helped, what did not, how much faster."""
    return [helped(mean, where, retrieval), did_not_help(mean, retrieval), how_fast(speed)]


# -- tables --------------------------------------------------------------------------------------------


def accuracy_table(mean: dict[str, Any], sets: dict[str, dict[str, Any]], seeds: int) -> str:
    """Accuracy in %: mean over the sets by shots ± over seeds, then every set with the most shots it has."""
    shots = [str(k) for k in mean["shots"]]
    names = [name + NOTES[name] for name in METHODS]
    title = "mean of the sets, %" if len(sets) > 1 else "accuracy, %"
    width = max(map(len, [title, *names]))
    own = {name: str(figures["shots"][-1]) for name, figures in sets.items()} if len(sets) > 1 else {}
    columns = {name: max(len(name), len(plural(k))) + 3 for name, k in own.items()}
    above = "".join(f"{name:>{columns[name]}}" for name in own)
    lines = [" " * (width + 14 * len(shots)) + above] if own else []
    lines.append(
        f"{title:<{width}}"
        + "".join(f"{plural(k):>14}" for k in shots)
        + "".join(f"{plural(k):>{columns[name]}}" for name, k in own.items())
    )
    for method, label in zip(METHODS, names, strict=True):
        cells = []
        for k in shots:
            cell = mean["accuracy"][method][k]
            # Zero-shot takes no shots: it has one value, not a spread of zero.
            spread = "" if method == BASELINE or seeds == 1 else f" ± {100 * cell['std']:3.1f}"
            difference = mean["differences"].get(f"{method} - {BASELINE}", {}).get(k)
            mark = "*" if difference is not None and difference["beyond_noise"] else " "
            cells.append(f"{100 * cell['mean']:.1f}{spread:<6}{mark}".rjust(14))
        for name, k in own.items():
            cells.append(f"{100 * sets[name]['accuracy'][method][k]['mean']:>{columns[name]}.1f}")
        lines.append(f"{label:<{width}}" + "".join(cells))
    return "\n".join(line.rstrip() for line in lines)


def retrieval_table(retrieval: dict[str, Any]) -> str:
    """mAP in %: native, every family of maps, OTI; the chosen one is marked."""
    methods = dict.fromkeys(row["method"] for figures in retrieval.values() for row in figures["rows"])
    title = "image to image, mAP in %"
    width = max(map(len, [title, *methods]))
    lines = [f"{title:<{width}}" + "".join(f"{name:>26}" for name in retrieval)]
    for method in methods:
        cells = []
        for figures in retrieval.values():
            row = next((row for row in figures["rows"] if row["method"] == method), None)
            if row is None:
                cells.append(f"{'–':>26}")
                continue
            setting = f"({row['setting']}) " if row["setting"] else ""
            arrow = "→ " if figures["chosen"] == method else ""
            mark = "*" if row["difference"]["beyond_noise"] else " "
            cells.append(f"{arrow}{setting}{100 * row['mAP']:.1f}{mark}".rjust(26))
        lines.append(f"{method:<{width}}" + "".join(cells))
    return "\n".join(line.rstrip() for line in lines)


def _seconds(value: float) -> str:
    return f"{1e6 * value:.1f} µs" if value < 1e-3 else f"{1e3 * value:.1f} ms"


def speed_table(speed: Sequence[dict[str, Any]], threads: int) -> str:
    title = f"time, {threads} thread{'s' if threads > 1 else ''}"
    width = max(map(len, [title, *(row["what"] for row in speed)]))
    lines = [f"{title:<{width}}{'ours':>12}{'plain':>12}{'ratio':>9}{'error':>9}  the plain program"]
    for row in speed:
        lines.append(
            f"{row['what']:<{width}}{_seconds(row['ours_seconds']):>12}{_seconds(row['plain_seconds']):>12}"
            f"{row['ratio']:>7.1f} ×{error(row['error']):>9}  {row['plain']}"
        )
    return "\n".join(lines)

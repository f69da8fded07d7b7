"""The demo's picture. Needs matplotlib, which is imported here and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from semobridge_ext import _files
from semobridge_ext.cli.demo_fewshot import BASELINE, CONTROL
from semobridge_ext.cli.demo_text import error, times

# Okabe and Ito's palette, told apart under the common colour-vision deficiencies; markers differ too.
STYLES = {
    BASELINE: ("#555555", ""),
    "nearest class mean": ("#999999", "o"),
    "Tip-Adapter": ("#E69F00", "s"),
    "GDA": ("#009E73", "^"),
    "LDA": ("#56B4E9", "v"),
    CONTROL: ("#CC79A7", "D"),
    "SeMoBridge": ("#0072B2", "P"),
    "SeMoBridge-T": ("#D55E00", "X"),
}
FASTER, SLOWER, INK = "#0072B2", "#D55E00", "#222222"
SIZE, DPI = (12.0, 5.2), 120


def _quiet(axis: Any) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_axisbelow(True)


def _draw_accuracy(axis: Any, mean: dict[str, Any], title: str) -> None:
    shots = mean["shots"]
    count = len(STYLES) - 1
    for i, (method, (colour, marker)) in enumerate(STYLES.items()):
        cells = [mean["accuracy"][method][str(k)] for k in shots]
        means, stds = ([100 * cell[n] for cell in cells] for n in ("mean", "std"))
        if method == BASELINE:
            axis.axhline(means[0], color=colour, linestyle=(0, (5, 3)), linewidth=1.5, label=method)
            continue
        offset = 0.06 * (i - 1 - (count - 1) / 2)  # error bars of equal points stand side by side
        axis.errorbar(
            [x + offset for x in range(len(shots))], means, yerr=stds, color=colour, marker=marker,
            markersize=6, linewidth=1.5, elinewidth=1, capsize=2.5, label=method,
        )  # fmt: skip
    axis.set_xticks(range(len(shots)), [str(k) for k in shots])
    axis.set_xlim(-0.4, len(shots) - 0.6)
    axis.set_xlabel("shots per class")
    axis.set_ylabel("test accuracy (%)")
    axis.set_title(title, loc="left", fontsize=11)
    axis.grid(axis="y", color="#E5E5E5", linewidth=0.7)
    axis.legend(
        frameon=False, fontsize=9.5, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.13),
        handlelength=1.6, columnspacing=1.2,
    )  # fmt: skip
    _quiet(axis)


def _draw_speed(axis: Any, speed: Sequence[dict[str, Any]]) -> None:
    """A bar a program: how many times as fast as the plain one, on a scale of ratios."""
    ratios = [row["ratio"] for row in speed]
    for place, (row, ratio) in enumerate(zip(speed, ratios, strict=True)):
        # From 1, where both are equal: the length of a bar is the logarithm of the ratio.
        axis.barh(place, ratio - 1, left=1, height=0.4, color=FASTER if ratio >= 1 else SLOWER)
        word = f"{times(ratio)} ×" if ratio >= 1 else f"1/{times(ratio)} ×"
        axis.annotate(
            word, (max(ratio, 1), place), xytext=(6, 0), textcoords="offset points", va="center",
            fontsize=11, fontweight="bold", color=INK,
        )  # fmt: skip
        axis.annotate(
            f"{row['what']}   (error {error(row['error'])})", (1, place - 0.24), xytext=(2, 1),
            textcoords="offset points", va="bottom", fontsize=9.5, color=INK,
        )  # fmt: skip
    axis.set_xscale("log")
    axis.axvline(1, color=INK, linewidth=1)
    axis.set_yticks([])
    axis.set_ylim(len(speed) - 0.6, -0.75)
    # Room for a label to the right of the longest bar, and above the shortest.
    axis.set_xlim(min(0.85, 0.85 * min(ratios)), max(10.0, max(ratios)) ** 1.25)
    ticks = [t for t in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if t <= max(10.0, max(ratios))]
    axis.set_xticks(ticks, [f"{t} ×" for t in ticks])
    axis.minorticks_off()
    axis.set_xlabel("times as fast as the plain program of the same run")
    axis.set_title("Speed, with the largest relative error", loc="left", fontsize=11)
    axis.grid(axis="x", color="#E5E5E5", linewidth=0.7)
    axis.spines["left"].set_visible(False)
    _quiet(axis)


def save(path: Path, mean: dict[str, Any], title: str, speed: Sequence[dict[str, Any]]) -> None:
    """Writes a PNG, whole or not at all."""
    # The object interface: pyplot would pick a window system and keep global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE, dpi=DPI)
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
    figure.subplots_adjust(left=0.06, right=0.975, top=0.92, bottom=0.24, wspace=0.1)
    _draw_accuracy(left, mean, title)
    _draw_speed(right, speed)
    _files.write_figure(path, figure, file_format="png", dpi=figure.dpi)

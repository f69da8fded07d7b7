"""The demo's picture. Needs matplotlib, which is imported here and nowhere else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from semobridge_ext import _files
from semobridge_ext.cli.demo_measure import Cloud
from semobridge_ext.cli.demo_text import NAMES

# Okabe and Ito's palette, told apart under the common colour-vision deficiencies; markers differ too.
STYLES = {
    "text": ("#555555", ""),
    "direct": ("#0072B2", "o"),
    "bridged_prototypes": ("#E69F00", "s"),
    "bridged_queries": ("#CC79A7", "D"),
    "blend": ("#009E73", "^"),
    "blend_unbridged": ("#56B4E9", "v"),
}
IMAGE, TEXT, LINE = "#0072B2", "#D55E00", "#222222"
DIFFERENCES = ("bridged_prototypes", "bridged_queries", "blend", "blend_unbridged")
ROW_HEIGHT, WIDTH, DPI = 5.0, 14.0, 150


def _dodge(count: int, step: float) -> list[float]:
    """Offsets that keep error bars of equal points side by side."""
    return [step * (i - (count - 1) / 2) for i in range(count)]


def _shot_axis(axis: Any, shots: Sequence[int]) -> None:
    axis.set_xticks(range(len(shots)), [str(k) for k in shots])
    axis.set_xlim(-0.45, len(shots) - 0.55)
    axis.grid(axis="y", color="#DDDDDD", linewidth=0.7)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def _draw_accuracy(axis: Any, figures: dict[str, Any]) -> None:
    shots = figures["shots"]
    for method, offset in zip(STYLES, _dodge(len(STYLES), 0.07), strict=True):
        colour, marker = STYLES[method]
        cells = [figures["accuracy"][method][str(k)] for k in shots]
        means, stds = ([100 * cell[n] for cell in cells] for n in ("mean", "std"))
        if method == "text":
            axis.axhline(means[0], color=colour, linestyle=(0, (5, 3)), linewidth=1.5, label=NAMES[method])
            continue
        axis.errorbar(
            [i + offset for i in range(len(shots))], means, yerr=stds, color=colour, marker=marker,
            markersize=5.5, linewidth=1.3, elinewidth=1.1, capsize=2.5, label=NAMES[method],
        )  # fmt: skip
    axis.set_ylabel("test accuracy (%)")
    axis.set_title(
        f"{figures['set']}: {figures['classes']} classes, mean ± std over {len(figures['seeds'])} seeds",
        loc="left", fontsize=11,
    )  # fmt: skip
    low, high = axis.get_ylim()
    axis.set_ylim(
        low - 0.34 * (high - low), high + 0.04 * (high - low)
    )  # room for the legend, wherever the curves run
    axis.legend(frameon=False, fontsize=8.5, ncols=2, loc="lower right")
    _shot_axis(axis, shots)


def _draw_differences(axis: Any, figures: dict[str, Any]) -> None:
    """Every method against direct prototypes, seed by seed: what the panel above cannot resolve."""
    shots, accuracy = figures["shots"], figures["accuracy"]
    for method, offset in zip(DIFFERENCES, _dodge(len(DIFFERENCES), 0.12), strict=True):
        colour, marker = STYLES[method]
        means, stds = [], []
        for k in map(str, shots):
            pairs = zip(accuracy[method][k]["values"], accuracy["direct"][k]["values"], strict=True)
            gains = [100 * (ours - direct) for ours, direct in pairs]
            mean = sum(gains) / len(gains)
            means.append(mean)
            stds.append((sum((g - mean) ** 2 for g in gains) / max(1, len(gains) - 1)) ** 0.5)
        axis.errorbar(
            [i + offset for i in range(len(shots))], means, yerr=stds, color=colour, marker=marker,
            markersize=5, linestyle="none", elinewidth=1.1, capsize=2.5,
        )  # fmt: skip
    axis.axhline(0, color=STYLES["direct"][0], linewidth=1.2)
    axis.set_ylabel("points over\ndirect prototypes")
    axis.set_xlabel("shots per class")
    _shot_axis(axis, shots)


def _draw_gap(axis: Any, cloud: Cloud, bridged: bool, gap: float) -> None:
    points = cloud.after if bridged else cloud.before
    centre, text = cloud.centres[1 if bridged else 0].tolist(), cloud.centres[2].tolist()
    axis.scatter(
        *points.T.tolist(), s=9, color=IMAGE, alpha=0.30, linewidths=0,
        label="drawings, bridged" if bridged else "drawings",
    )  # fmt: skip
    axis.scatter(
        *cloud.text.T.tolist(), s=16, color=TEXT, alpha=0.55, marker="^", linewidths=0, label="class texts"
    )
    axis.plot(*zip(centre, text, strict=True), color=LINE, linewidth=1.8, zorder=3)
    for (x, y), colour, marker in ((centre, IMAGE, "o"), (text, TEXT, "^")):
        axis.plot(
            x, y, marker=marker, color=colour, markersize=10, markeredgecolor="white",
            markeredgewidth=1.5, zorder=4,
        )  # fmt: skip
    seen = math.dist(centre, text)
    when = "after" if bridged else "before"
    axis.set_title(f"{when} bridging: gap {gap:.3f}, {seen:.3f} of it in sight", loc="left", fontsize=11)
    across, upward = (
        f"principal component {i + 1} ({100 * share:.0f} % of variance)"
        for i, share in zip(cloud.components, cloud.share, strict=True)
    )
    axis.set_xlabel(across)
    if bridged:
        axis.tick_params(labelleft=False)  # the axes are those of the panel beside it
    else:
        axis.set_ylabel(upward)
    axis.spines[["top", "right"]].set_visible(False)
    handles, labels = axis.get_legend_handles_labels()
    legend = axis.legend(handles, labels, frameon=False, fontsize=8.5, loc="upper left", markerscale=1.8)
    for handle in legend.legend_handles:
        handle.set_alpha(1)


def save(path: Path, results: Sequence[tuple[dict[str, Any], Cloud]]) -> None:
    """Writes a PNG, one row for each evaluation set, whole or not at all."""
    # The object interface: pyplot would pick a window system and keep global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, ROW_HEIGHT * len(results)), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    rows = figure.add_gridspec(len(results), 3, width_ratios=(1.25, 1, 1))
    for row, (figures, cloud) in enumerate(results):
        left = rows[row, 0].subgridspec(2, 1, height_ratios=(2.2, 1), hspace=0.03)
        upper = figure.add_subplot(left[0])
        lower = figure.add_subplot(left[1])
        upper.tick_params(labelbottom=False)
        _draw_accuracy(upper, figures)
        _draw_differences(lower, figures)
        before = figure.add_subplot(rows[row, 1])
        after = figure.add_subplot(rows[row, 2], sharex=before, sharey=before)
        _draw_gap(before, cloud, False, figures["gap"]["gap_before"])
        _draw_gap(after, cloud, True, figures["gap"]["gap_after"])
        low, high = before.get_ylim()
        before.set_ylim(low, high + 0.12 * (high - low))  # room for the legend
    _files.write_figure(path, figure, file_format="png", dpi=figure.dpi)

"""The report's pictures and its page: one HTML file that refers to nothing outside of it."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable
from typing import Any

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#555555")
_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;color:#222;max-width:980px;margin:32px auto;padding:0 20px}
h1{font-size:24px}h2{font-size:18px;margin:36px 0 6px}p{margin:6px 0 10px}img{max-width:100%}
table{border-collapse:collapse;font-size:14px;margin:8px 0}td,th{padding:3px 12px 3px 0;text-align:right}
td:first-child,th:first-child{text-align:left}th{border-bottom:1px solid #888;font-weight:600}
td{border-bottom:1px solid #eee;white-space:nowrap}.text td{text-align:left;white-space:normal}
"""


def picture(draw: Callable[[Any], None], wide: float, high: float) -> str:
    """An SVG as a data address: as an image its element names cannot meet those of another one."""
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


def _plain(axis: Any) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", color="#DDDDDD", linewidth=0.7)
    axis.set_axisbelow(True)


def draw_accuracy(figure: Any, found: dict[str, Any]) -> None:
    axis = figure.subplots()
    shots = found["shots"]
    for i, (name, one) in enumerate(found["folders"].items()):
        values = [one["accuracy"][str(k)] for k in shots]
        means = [100 * sum(v) / len(v) for v in values]
        spread = [
            100 * (sum((x - sum(v) / len(v)) ** 2 for x in v) / max(1, len(v) - 1)) ** 0.5 for v in values
        ]
        at = [j + 0.06 * i for j in range(len(shots))]
        axis.errorbar(at, means, spread, color=COLOURS[i % 7], marker="o", ms=4, capsize=2.5, label=name)
    axis.set_xticks(range(len(shots)), [str(k) for k in shots])
    axis.set(xlabel="shots per class", ylabel="accuracy, %")
    axis.legend(frameon=False)
    _plain(axis)


def draw_cosines(figure: Any, found: dict[str, Any]) -> None:
    folders = found["folders"]
    axes = figure.subplots(1, len(folders), squeeze=False, sharey=True)[0]
    edges = [-1 + 2 * i / len(next(iter(folders.values()))["cosines"]["intra"]) for i in range(101)]
    for axis, (name, one) in zip(axes, folders.items(), strict=True):
        for key, colour, label in (("inter", "#999999", "two classes"), ("intra", "#0072B2", "one class")):
            axis.stairs(one["cosines"][key], edges, fill=True, alpha=0.55, color=colour, label=label)
        axis.set_title(f"{name}: overlap {100 * one['cosines']['overlap']:.1f} %", fontsize=10)
        axis.set_xlabel("cosine")
        _plain(axis)
    axes[0].set_ylabel("share of pairs")
    axes[0].legend(frameon=False)


def draw_spectra(figure: Any, found: dict[str, Any]) -> None:
    projection = found.get("text_projection")
    axes = figure.subplots(1, 2 if projection else 1, squeeze=False)[0]
    for i, (name, one) in enumerate(found["folders"].items()):
        shares = [max(s, 1e-12) for s in one["spectrum"]["shares"]]
        axes[0].semilogy(range(1, len(shares) + 1), shares, color=COLOURS[i % 7], label=name)
    axes[0].set_ylim(1e-6, 1)
    axes[0].set(xlabel="principal direction", ylabel="share of the variance", title="features")
    axes[0].legend(frameon=False)
    if projection:
        axes[1].semilogy(range(1, len(projection) + 1), projection, color="#222222")
        axes[1].axhline(0.3, color="#D55E00", ls="--", label="the bridge's cut-off, 0.3")
        axes[1].set(xlabel="index", ylabel="singular value", title="text projection W")
        axes[1].legend(frameon=False)
    for axis in axes:
        _plain(axis)


def draw_retrieval(figure: Any, found: dict[str, Any]) -> None:
    axis = figure.subplots()
    names, values = list(found["folders"]), [100 * f["retrieval"]["mAP"] for f in found["folders"].values()]
    bars = axis.bar(names, values, color=[COLOURS[i % 7] for i in range(len(names))], width=0.6)
    axis.bar_label(bars, fmt="%.2f")
    axis.set_ylabel("mAP, %")
    axis.margins(y=0.15)
    _plain(axis)


def table(header: list[str], rows: list[list[Any]], kind: str = "") -> str:
    def cell(value: Any) -> str:
        return (
            f"{value:.3f}" if isinstance(value, float) else html.escape("" if value is None else str(value))
        )

    head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    body = "".join("<tr>" + "".join(f"<td>{cell(v)}</td>" for v in row) + "</tr>" for row in rows)
    return f"<table class='{kind}'><tr>{head}</tr>{body}</table>"


def document(title: str, parts: list[str]) -> bytes:
    """A page of its own: title, style, and parts that are HTML already."""
    head = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title>",
        f"<style>{_STYLE}</style><h1>{html.escape(title)}</h1>",
    ]
    return "".join(head + parts).encode()


def page(found: dict[str, Any], tables: dict[str, tuple[list[str], list[list[Any]]]]) -> bytes:
    """The whole report; `tables` also go to CSV files of these names."""
    many = max(1, len(found["folders"]))
    parts = [
        f"<p>{found['images']} images, {found['classes']} classes; the first row, "
        f"<b>{html.escape(next(iter(found['folders'])))}</b>, is what the others are compared with.</p>",
    ]

    def section(title: str, text: str, draw: Any, wide: float, high: float, name: str) -> None:
        parts.append(f"<h2>{title}</h2><p>{text}</p>")
        if draw is not None:
            source = picture(lambda figure: draw(figure, found), wide, high)
            parts.append(f'<img src="{source}" alt="{title}">')
        parts.append(table(*tables[name]))

    section(
        "Retrieval", "Every image a query, all others the gallery; equal labels are relevant.",
        draw_retrieval, 1.6 + 1.3 * many, 3.2, "retrieval",
    )  # fmt: skip
    if found["shots"]:
        section(
            "Accuracy by shots",
            f"Nearest class mean, mean ± standard deviation over {found['seeds']} draws of the shots, on the "
            f"{found['shot_classes']} classes with more than {max(found['shots'])} images. Zero-shot: the "
            "nearest class text over all classes, so it is not on the same scale.",
            draw_accuracy, 7.5, 3.6, "accuracy",
        )  # fmt: skip
    section(
        "Cosines within and between classes",
        f"Over all pairs of {found['sampled']} images; overlap is the shared area of both histograms. The "
        "gap is the distance of the mean unit image and the mean unit text.",
        draw_cosines, 1 + 3.1 * many, 3.0, "cosines",
    )  # fmt: skip
    section(
        "Spectra", "Variance along principal directions; the effective rank is exp of their entropy.",
        draw_spectra, 9.5, 3.4, "spectra",
    )  # fmt: skip
    section(
        "Timings", "As the runs recorded them; a resumed run counts its last part.", None, 0, 0, "timings"
    )
    parts += ["<h2>Installation</h2>", table(*tables["backend"], kind="text")]
    return document("semobridge-ext report", parts)

"""`report_shards`: what the command `report` does, from Python."""

from __future__ import annotations

import logging
from typing import Any

from semobridge_ext.cli.calls.words import Call
from semobridge_ext.cli.commands import report as report_command

REPORT = Call("report_shards", "report", report_command, {"no_images": "images", "no_text": "text"}, {})


def report_shards(
    shards: Any,
    *,
    out: Any = "report.html",
    label: str = "label",
    shots: Any = (1, 2, 4, 8),
    seeds: int = 5,
    queries: int = 20_000,
    template: str = "a photo of {}",
    images: bool = True,
    text: bool = True,
) -> dict[str, Any]:
    """One HTML file about shards with labels, as ``semobridge-ext report`` writes it.

    Retrieval, differences with intervals, accuracy by shots, worst classes, sample images, cosines within and
    between classes, the modality gap, spectra, corrupt files, timings. The page needs no other file; its
    tables lie beside it as CSV, its figures as JSON.

    Args:
        shards: what `retrieve` takes, or a list of such: the first is the baseline, the others usually what
            `map_shards` made of it.
        out: the page; the other files have its name and another ending.
        label: the column of the metadata that names the class.
        shots: numbers of shots a class.
        seeds: draws of the shots.
        queries: images that ask in retrieval, drawn where there are more; every image can be found.
        template: what stands around a class name.
        images: False leaves the sample images out.
        text: False loads no model and compares with no texts.

    Returns:
        A dict, what the JSON file holds: "images", "classes", "shots" .. and, by the name of each of the
        shards, "folders" with its figures.

    Raises:
        ValueError: shards of other images, fewer than two classes, no labels, a model whose weights are
            others by now. TypeError: an argument of another kind. FileNotFoundError: no such shards.
            ImportError: pyarrow, or for Lance pylance, is missing.

    Numerics: unit rows in float32, figures in float64; the same draws on every call.

    Memory: the rows of one of the shards at a time in float32, up to 1.8 times their size.

    Example:
        >>> import tempfile, torch, semobridge_ext as sb
        >>> import pyarrow as pa, pyarrow.parquet as pq
        >>> rows = torch.eye(2).repeat(4, 1).add(0.1).tolist()
        >>> with tempfile.TemporaryDirectory() as home:
        ...     pq.write_table(pa.table({"features": rows, "label": list("abababab")}), f"{home}/a.parquet")
        ...     found = sb.report_shards(f"{home}/a.parquet", out=f"{home}/r.html", shots=1, images=False)
        >>> found["images"], found["classes"], list(found["folders"])
        (8, 2, ['a.parquet'])
    """
    args = REPORT.arguments(
        shards=shards, out=out, label=label, shots=shots, seeds=seeds, queries=queries, template=template,
        no_images=images, no_text=text,
    )  # fmt: skip
    with REPORT.own_words():
        return report_command.perform(args, logging.getLogger("semobridge_ext").info)

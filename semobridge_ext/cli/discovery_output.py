"""What `semobridge-ext discover` writes: classes by their strongest concepts, a table, a sheet, a report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from semobridge_ext import _files
from semobridge_ext.cli import sheet
from semobridge_ext.cli.output import write_csv
from semobridge_ext.cli.results import Found as Found
from semobridge_ext.discovery import NumClassesEstimate

NAMED = 3  # concepts that name a class


def strongest(
    shown: Tensor,  # [N, K] softmax over concepts
    clusters: Tensor,  # [N]
    count: int,
) -> list[list[int]]:
    """Of each cluster the concepts whose mean share exceeds that of all images by most.

    The first always, of the others those that exceed it by at least a quarter as much.
    """
    sums = shown.new_zeros(count, shown.shape[1]).index_add_(0, clusters, shown)
    sizes = torch.bincount(clusters, minlength=count)[:, None].clamp(min=1)
    top = (sums / sizes - shown.mean(dim=0)).topk(min(NAMED, shown.shape[1]), dim=1)
    return [
        [k for k, value in zip(row, values, strict=True) if k == row[0] or value >= values[0] / 4]
        for row, values in zip(top.indices.tolist(), top.values.tolist(), strict=True)
    ]


def classes(
    names: Sequence[str],  # C, the old ones first
    old: int,
    proba: Tensor,  # [N, C]
    shown: Tensor,  # [N, K] softmax over concepts
    concepts: Sequence[str],
    labels: Sequence[str | None],
) -> list[Found]:
    """Every class that has an image; new ones are told by their concepts."""
    best = proba.max(dim=1)
    top = strongest(shown, best.indices, len(names))
    found = []
    for c, name in enumerate(names):
        mine = (best.indices == c).nonzero().flatten()
        rows = mine[torch.argsort(best.values[mine], descending=True, stable=True)].tolist()
        words = [concepts[k] for k in top[c]]
        title = name if c < old else f"{name}: {', '.join(words)}"
        if rows:
            found.append(Found(c, title, c < old, words, rows, sum(labels[i] is not None for i in rows)))
    return found


def assignments(
    found: Sequence[Found], paths: Sequence[str], labels: Sequence[str | None], proba: Tensor
) -> list[dict[str, Any]]:
    """One record an image, in the order of the images."""
    of = {i: one for one in found for i in one.images}
    return [
        {
            "image": image, "cluster": of[i].cluster, "name": of[i].name,
            "kind": "old" if of[i].old else "new", "label": labels[i],
            "probability": float(proba[i, of[i].cluster]),
        }
        for i, image in enumerate(paths)
    ]  # fmt: skip


def write_assignments(path: Path, table: Sequence[dict[str, Any]]) -> None:
    written = (
        {**row, "label": row["label"] or "", "probability": f"{row['probability']:.4f}"} for row in table
    )
    write_csv(path, list(table[0]), (list(row.values()) for row in written))


def write_sheet(path: Path, found: Sequence[Found], paths: Sequence[str], proba: Tensor, hits: int) -> None:
    """The new classes, the largest first, with their surest images; PNG or HTML by the name."""
    rows = []
    for one in sorted(found, key=lambda f: (-len(f.images), f.cluster)):
        shown = [sheet.Hit(paths[i], Path(paths[i]).name, float(proba[i, one.cluster])) for i in one.images]
        rows.append(sheet.Row(f"{one.name} ({len(one.images)} images)", False, shown[:hits]))
    html = path.suffix == ".html"
    data = sheet.page(rows, "discovered classes") if html else sheet.png(rows, lead="")
    _files.write_bytes(path, data)


def _cell(text: str) -> str:
    """A name in a table of Markdown: it ends neither its cell nor its line."""
    return " ".join(text.split()).replace("|", "\\|")


def told_estimate(estimate: NumClassesEstimate) -> str:
    """One line of the report and of what is printed."""
    tried = estimate.candidates
    best = estimate.accuracy[tried.index(estimate.num_classes)]
    return (
        f"{estimate.num_classes} classes is an estimate, the best of {len(tried)} counts from {tried[0]} to "
        f"{tried[-1]}, with {100 * best:.1f} % of the held-out labels right"
    )


def _curve(estimate: NumClassesEstimate) -> list[str]:
    """What was tried. Near the best the curve is flat: neighbours are as likely."""
    rows = zip(estimate.candidates, estimate.accuracy, strict=True)
    return [
        "",
        "## Number of classes",
        "",
        "An estimate: k-means with each count, judged by labelled images of classes whose labels it did not "
        "see. Counts of about the same accuracy are about as likely; with a count of your own, pass "
        "--classes N.",
        "",
        "| classes | held-out accuracy, % |",
        "|---:|---:|",
        *(f"| {k}{' (taken)' if k == estimate.num_classes else ''} | {100 * a:.1f} |" for k, a in rows),
    ]


def report(found: Sequence[Found], facts: Sequence[str], estimate: NumClassesEstimate | None = None) -> str:
    old, new = ([f for f in found if f.old is kind] for kind in (True, False))
    lines = ["# Discovered classes", "", *(f"- {fact}" for fact in facts)]
    lines += ["", "## New classes", "", "| cluster | strongest concepts | images |", "|---:|---|---:|"]
    ranked = sorted(new, key=lambda f: (-len(f.images), f.cluster))
    lines += [f"| {f.cluster} | {_cell(', '.join(f.concepts))} | {len(f.images)} |" for f in ranked]
    lines += [
        "",
        "## Old classes",
        "",
        "| cluster | class | images | of these labelled |",
        "|---:|---|---:|---:|",
    ]
    lines += [f"| {f.cluster} | {_cell(f.name)} | {len(f.images)} | {f.labelled} |" for f in old]
    lines += _curve(estimate) if estimate is not None else []
    return "\n".join(lines) + "\n"

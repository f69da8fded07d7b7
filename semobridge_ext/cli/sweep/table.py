"""The sweep over all models, and its table as text, CSV and Markdown."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from semobridge_ext import _files
from semobridge_ext.cli.sweep import open_clip_models, other_models
from semobridge_ext.cli.sweep.cells import ABSENT, METHODS, WORKS, Cell, Small, check, scattered
from semobridge_ext.clip.template import clip_tokenizer


class Row(NamedTuple):
    """Models that shrink to one, and what works on it."""

    models: tuple[str, ...]
    cells: dict[str, Cell]


def names() -> list[str]:
    return [*open_clip_models.names(), *other_models.MODELS]


def groups(wanted: Iterable[str]) -> list[tuple[str, ...]]:
    """The models by what they shrink to, in order."""
    found: dict[str, list[str]] = {}
    for name in wanted:
        key = name
        if name not in other_models.MODELS:
            key = open_clip_models.kind(open_clip_models.small_config(name))
        found.setdefault(key, []).append(name)
    return [tuple(models) for models in found.values()]


def small(name: str) -> Small:
    """The small model of a name, in float64 where it can compute so."""
    torch.manual_seed(1)
    if name in other_models.MODELS:
        model, tokenizer = other_models.MODELS[name](), other_models.tokenizer(name)
        side = 32 if "Align" in name else 16
        # OpenAI's layer norm computes in float32 whatever comes in.
        dtype = torch.float32 if name.startswith("OpenAI") else torch.float64
        context = other_models.CONTEXT
    else:
        config = open_clip_models.small_config(name)
        model, tokenizer, dtype = (
            open_clip_models.build(config),
            open_clip_models.tokenizer(config),
            torch.float64,
        )
        side, context = config["vision_cfg"]["image_size"], config["text_cfg"]["context_length"]
    words, own = (open_clip_models.CLIP_WORDS, None) if tokenizer is None else (tokenizer.words, tokenizer)
    if own is None:
        own = clip_tokenizer(context)
    return Small(scattered(model, dtype), side, words, tokenizer, own)


def sweep(
    wanted: Sequence[str], methods: Sequence[str] = METHODS, done: Callable[[int, int], None] | None = None
) -> list[Row]:
    """Every method on every model of the list; `done` hears of each model."""
    rows, parts = [], groups(wanted)
    state, threads = torch.random.get_rng_state(), torch.get_num_threads()
    quiet = [logging.getLogger(name) for name in ("semobridge_ext", "transformers")]
    levels = [log.level for log in quiet]
    for log in quiet:
        log.setLevel(logging.ERROR)  # that a tower has no prefix tree, or texts no mask, is no news here
    torch.set_num_threads(1)  # small products
    try:
        for i, models in enumerate(parts):
            try:
                model = small(models[0])
            except ImportError as error:
                found = dict.fromkeys(methods, Cell(ABSENT, str(error).partition("; ")[0]))
            else:
                found = {method: check(model, method) for method in methods}
            rows.append(Row(models, found))
            if done is not None:
                done(i + 1, len(parts))
    finally:
        torch.random.set_rng_state(state)
        torch.set_num_threads(threads)
        for log, level in zip(quiet, levels, strict=True):
            log.setLevel(level)
    return rows


# -- as text -----------------------------------------------------------------------------------------------


def as_csv(rows: Sequence[Row]) -> str:
    """One line a model: a state and a note of each method."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    methods = list(rows[0].cells)
    writer.writerow(["model", *(name for method in methods for name in (method, f"{method}: why"))])
    for row in rows:
        for name in row.models:
            writer.writerow([name, *(text for method in methods for text in row.cells[method])])
    return out.getvalue()


def _notes(rows: Sequence[Row]) -> dict[str, int]:
    """Every reason once, by its number."""
    found = dict.fromkeys(cell.note for row in rows for cell in row.cells.values() if cell.note)
    return {note: i + 1 for i, note in enumerate(found)}


def counts(rows: Sequence[Row]) -> str:
    """How many models each method works on."""
    total = sum(len(row.models) for row in rows)
    parts = []
    for method in rows[0].cells:
        works = sum(len(row.models) for row in rows if row.cells[method].state == WORKS)
        parts.append(f"{method} {works}")
    return f"of {total} models work: {', '.join(parts)}"


def as_markdown(rows: Sequence[Row]) -> str:
    methods, notes = list(rows[0].cells), _notes(rows)
    lines = [f"| models | {' | '.join(methods)} |", "|---|" + "---|" * len(methods)]
    for row in rows:
        cells = [f"{c.state}{f' ({notes[c.note]})' if c.note else ''}" for c in row.cells.values()]
        lines.append(f"| {', '.join(row.models)} | {' | '.join(cells)} |")
    lines += ["", f"{counts(rows)[0].upper()}{counts(rows)[1:]}.", ""]
    lines += [f"{i}. {note}" for note, i in notes.items()]
    return "\n".join(lines)


MARKS = ("<!-- models: written by semobridge-ext models --docs -->", "<!-- end of models -->")


def write_docs(path: Path, rows: Sequence[Row]) -> None:
    """Puts the Markdown table between the marks of a page."""
    page = path.read_text(encoding="utf-8")
    if any(page.count(mark) != 1 for mark in MARKS):
        raise ValueError(
            f"models: --docs must be a page with {MARKS[0]} and {MARKS[1]}, got {path}; add them"
        )
    before, after = page.split(MARKS[0])[0], page.split(MARKS[1])[1]
    _files.write_text(path, f"{before}{MARKS[0]}\n\n{as_markdown(rows)}\n\n{MARKS[1]}{after}")


def as_text(rows: Sequence[Row]) -> str:
    methods, notes = list(rows[0].cells), _notes(rows)
    shown = [
        (row.models[0] + (f" and {len(row.models) - 1} more" if len(row.models) > 1 else ""), row)
        for row in rows
    ]
    width = max(len(name) for name, _ in shown)
    columns = max(len("t_c alone [99]"), *(len(method) for method in methods))
    lines = [f"{'':<{width}}  " + "  ".join(f"{method:<{columns}}" for method in methods).rstrip()]
    for name, row in shown:
        cells = [f"{c.state}{f' [{notes[c.note]}]' if c.note else ''}" for c in row.cells.values()]
        lines.append(f"{name:<{width}}  " + "  ".join(f"{cell:<{columns}}" for cell in cells).rstrip())
    lines += ["", counts(rows)]
    lines += [f"[{i}] {note}" for note, i in notes.items()]
    return "\n".join(lines)

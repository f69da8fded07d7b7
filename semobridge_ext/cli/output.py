"""What several commands write and say: JSON, CSV, pictures, lines and bars."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from semobridge_ext import _files

Tell = Callable[[str], None]  # what a step says on its way, a line at a time


def tell(line: str) -> None:
    """Of a command: its result alone goes to stdout."""
    print(line, file=sys.stderr)


def bar_off(quiet: bool | None) -> bool | None:
    """tqdm's `disable`: a command's bar is one of a terminal, that of a Python call (None) of any place."""
    return {True: True, False: None, None: False}[quiet]


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    text = io.StringIO()
    csv.writer(text).writerows([header, *rows])
    _files.write_text(path, text.getvalue())


def write_json(path: Path, value: Any) -> None:
    _files.write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def has_matplotlib() -> bool:
    return find_spec("matplotlib") is not None

"""What several commands write: JSON, CSV and pictures."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from semobridge_ext import _files


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    text = io.StringIO()
    csv.writer(text).writerows([header, *rows])
    _files.write_text(path, text.getvalue())


def write_json(path: Path, value: Any) -> None:
    _files.write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def has_matplotlib() -> bool:
    return find_spec("matplotlib") is not None

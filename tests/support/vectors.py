"""Inputs and outputs of the authors' own functions: tests/data/vectors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FOLDER = Path(__file__).resolve().parents[1] / "data" / "vectors"


def vector(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def rows(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)

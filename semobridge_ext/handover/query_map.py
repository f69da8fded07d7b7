"""How a query comes to the gallery: the folded map, as files that need no code of this package."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from semobridge_ext import _errors, _files
from semobridge_ext.bridging import Bridge
from semobridge_ext.cli.shard_writer import write_rows
from semobridge_ext.handover.sources import NAME, Shards, Source
from semobridge_ext.linear_maps import IsoCLIP, LinearMap

SAME = "as an image's"  # by the same lines
NORM = "normalise it: q = x / |x|, without the matrix"
NO_TEXT = "cannot be compared with these rows"
PROJECTED, HIDDEN = "projected", "before projection"
BY_NAME = ("bridge", "pca")


class QueryMap(NamedTuple):
    """What queries pass, and what the gallery's rows still have to pass."""

    name: str
    linear: LinearMap | None  # of an image's features; None: norm(x)
    rows: LinearMap | None  # of the stored rows; None: they are mapped already, or only normalised
    texts: str  # what a text's features have to do


def _of(mapping: Any, name: str, takes: str) -> tuple[LinearMap, str]:
    """One matrix chain with a norm at its end, and what a text does."""
    if isinstance(mapping, IsoCLIP):
        linear, texts, needs = mapping.map("image"), NO_TEXT, HIDDEN
    elif isinstance(mapping, Bridge):  # bridged images are compared with unmapped texts
        linear, texts, needs = LinearMap.from_bridge(mapping), NORM, PROJECTED
    elif isinstance(mapping, LinearMap):
        linear, texts, needs = mapping, SAME, PROJECTED
    else:
        contract, remedy = "be a Bridge, an IsoCLIP, a LinearMap, a file or a name", "pass one of these"
        raise TypeError(_errors.message(NAME, "mapping", contract, mapping, remedy))
    if takes not in (needs, ""):
        got = f"{name}, which needs rows of the kind '{needs}', for rows of the kind '{takes}'"
        remedy = "extract the images for it"
        raise ValueError(_errors.message(NAME, "mapping", "fit the gallery", got, remedy))
    return linear.with_norm(True).fold(), texts


def _loaded(path: Path) -> Any:
    """The object of a mapping's file."""
    from semobridge_ext.cli import mappings

    try:
        apply = mappings.load(path).apply
    except ValueError as error:  # of `map`, which reads these files elsewhere
        told = str(error).replace("map: --mapping", f"{NAME}: mapping", 1)
        raise ValueError(told) from error
    return getattr(apply, "__self__", apply)  # IsoCLIP's is a method, the others apply themselves


def _made(name: str, shards: Shards) -> Any:
    """A mapping by name, with the defaults of `map`."""
    from argparse import Namespace

    from semobridge_ext.cli import mappings

    options = dict.fromkeys(option for options in mappings.OPTIONS.values() for option in options)
    apply = mappings.make(name, Namespace(**options), shards.folder).apply
    return getattr(apply, "__self__", apply)


def choose(mapping: Any, source: Source) -> QueryMap:
    """What stands between a query and the rows of a source."""
    settings = source.settings() if isinstance(source, Shards) else {}
    kind = str(settings.get("features", PROJECTED)) if settings else ""
    if settings.get("command") == "map":
        if mapping is not None:
            got, remedy = (
                f"{mapping} for rows that are mapped already",
                "leave it out, or pass the raw shards",
            )
            raise ValueError(_errors.message(NAME, "mapping", "be None", got, remedy))
        assert isinstance(source, Shards)
        linear, texts = _of(_loaded(source.folder.path / "mapping.safetensors"), "", "")
        return QueryMap(str(settings.get("mapping", "a mapping")), linear, None, texts)
    if mapping is None:
        return QueryMap("none", None, None, NO_TEXT if kind == HIDDEN else SAME)
    if isinstance(mapping, (str, os.PathLike)):
        name = Path(mapping).stem
        if str(mapping) in BY_NAME:
            if not isinstance(source, Shards):
                remedy = "pass a mapping's object or file: only shards name their model"
                contract = "be no name for rows in memory"
                raise ValueError(_errors.message(NAME, "mapping", contract, f"'{mapping}'", remedy))
            found = _made(str(mapping), source)
        elif str(mapping) == "isoclip":
            remedy = "run semobridge-ext map first, which takes its cuts"
            raise ValueError(
                _errors.message(NAME, "mapping", "be bridge or pca by name", "'isoclip'", remedy)
            )
        else:
            found = _loaded(Path(_files.place(mapping, NAME)))
    else:
        found, name = mapping, type(mapping).__name__
    linear, texts = _of(found, name, kind)
    _errors.check_last_dim(
        NAME, "gallery", torch.empty(0, source.width), linear.in_features, "the mapping takes that width"
    )
    return QueryMap(name, linear, linear, texts)


# -- files -------------------------------------------------------------------------------------------


def _numbered(name: str, i: int, steps: int) -> str:
    return f"query_{name}.npy" if steps == 1 else f"query_{name}_{i}.npy"


def write(out: Path, linear: LinearMap, texts: str) -> tuple[list[str], list[str]]:
    """Writes the map; the files' names, and README's lines about it."""
    linear.save(out / "query_map.safetensors")
    files, code = ["query_map.safetensors"], ["q = x"]
    for i, step in enumerate(linear.steps):
        names = {"matrix": step.matrix, "offset": step.offset}
        parts = []
        for name, value in names.items():
            if value is None:
                continue
            file = _numbered(name, i, len(linear.steps))
            with _files.replaced(out / file) as handle:
                write_rows(handle, value.float().numpy())
            files.append(file)
            parts.append(f'numpy.load("{file}")')
        code.append(f"q = q @ {' + '.join(parts)}")
        if step.normalize:
            code.append("q = q / numpy.linalg.norm(q, axis=1, keepdims=True)")
    lines = [
        "A query of an image: x, its features like those that the gallery was made of, float32 "
        f"[n, {linear.in_features}].",
        *(f"    {line}" for line in ("import numpy", *code)),
        f"A query of a text: {texts}.",
        "query_map.safetensors holds the same matrices in float64 (LinearMap.load reads it).",
    ]
    return files, lines


def identity(width: int) -> LinearMap:
    """norm(x) as a matrix: the same lines serve every folder."""
    return LinearMap(torch.from_numpy(np.eye(width)))

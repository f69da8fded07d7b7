"""Mappings by name or file, behind one interface; a new one is an entry in MAKERS or in FORMATS."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor
from torch.nn.functional import normalize

from semobridge_ext import _files
from semobridge_ext.bridging import Bridge
from semobridge_ext.cli import models
from semobridge_ext.cli.shards import Folder
from semobridge_ext.linear_maps import IsoCLIP, LinearMap

PCA_FORMAT = "semobridge-ext pca 1"  # read only: PCA is saved as a linear map
PROJECTED, HIDDEN = "projected", "before projection"


class Mapping(NamedTuple):
    """`apply` maps image features; `text` maps text features into the same space, None where nothing can."""

    name: str
    takes: str  # PROJECTED or HIDDEN
    apply: Callable[[Tensor], Tensor]  # [n, D] float32 -> [n, M] unit rows
    text: Callable[[Tensor], Tensor] | None
    save: Callable[[Path], None]
    facts: dict[str, Any]


def mapped_rows(mapping: Mapping, part: Tensor, dtype: str) -> np.ndarray:  # [n, D] -> [n, M]
    """Some rows of a shard as `map` stores them."""
    return mapping.apply(part.float()).numpy().astype(dtype)


# -- from objects ------------------------------------------------------------------------------------


def _of_bridge(bridge: Bridge, name: str = "bridge") -> Mapping:
    # Bridged images are compared with unmapped texts: that is what the bridge is for.
    facts = {"rank": bridge.rank, "atol": bridge.atol}
    return Mapping(name, PROJECTED, bridge, lambda t: normalize(t, dim=-1), bridge.save, facts)


def _of_pca(pca: LinearMap, name: str = "pca") -> Mapping:
    return Mapping(name, PROJECTED, pca, pca, pca.save, {"components": pca.out_features})


def _of_isoclip(iso: IsoCLIP, name: str = "isoclip") -> Mapping:
    facts = {key: value for key, value in iso.get_params().items() if not isinstance(value, Tensor)}
    return Mapping(name, HIDDEN, iso.image, None, iso.save, facts)


def _of_linear(linear: LinearMap, name: str = "linear map") -> Mapping:
    return Mapping(name, PROJECTED, linear, linear, linear.save, {"steps": len(linear.steps)})


# -- from a name -------------------------------------------------------------------------------------


def _make_bridge(args: argparse.Namespace, folder: Folder, encoder: models.Encoder) -> Mapping:
    return _of_bridge(Bridge.from_clip(encoder.model, atol=args.atol))


def _make_pca(args: argparse.Namespace, folder: Folder, encoder: models.Encoder) -> Mapping:
    if args.texts is not None:
        lines = Path(args.texts).read_text(encoding="utf-8").splitlines()
        texts = [line for line in lines if line.strip()]
    else:
        texts = models.prompts("map", folder.class_names(), args.template)
    if len(texts) < 3:
        raise ValueError(
            f"map: --texts must hold at least 3 texts to take directions from, got {len(texts)}; "
            "pass a file with one text a line, or extract with labels"
        )
    features = encoder.texts(texts)
    k = args.components or features.shape[1] // 2
    most = min(len(texts) - 1, features.shape[1])
    if k > most:
        raise ValueError(
            f"map: --components must be at most {most} for {len(texts)} texts of width "
            f"{features.shape[1]}, got {k}; pass fewer, or more texts"
        )
    return _of_pca(LinearMap.pca(normalize(features.double(), dim=1), k))


def _make_isoclip(args: argparse.Namespace, folder: Folder, encoder: models.Encoder) -> Mapping:
    options: dict[str, Any] = {"compress": args.compress}
    if args.published is not None:
        tag = folder.settings().get("pretrained")
        options |= {"published": args.published, "weights": None if Path(str(tag)).exists() else tag}
    elif args.k_top is not None and args.k_bottom is not None:
        options |= {"k_top": args.k_top, "k_bottom": args.k_bottom}
    else:
        raise ValueError(
            "map: --k-top and --k-bottom must be given for isoclip, got none; or pass --published ViT-B/32 "
            "for the paper's values"
        )
    return _of_isoclip(IsoCLIP.from_clip(encoder.model, **options))


MAKERS: dict[str, Callable[[argparse.Namespace, Folder, models.Encoder], Mapping]] = {
    "bridge": _make_bridge, "isoclip": _make_isoclip, "pca": _make_pca,
}  # fmt: skip


def make(name: str, args: argparse.Namespace, folder: Folder) -> Mapping:
    """A mapping of MAKERS for the model that made the shards, or one from a file."""
    if name not in MAKERS:
        return load(Path(name))
    if "model" not in folder.settings():
        raise ValueError(
            f"map: IN must name its model, got {folder.path} without settings.json; pass --mapping a file "
            "that a mapping's .save() wrote"
        )
    return MAKERS[name](args, folder, models.maker_of("map", folder))


# -- from a file -------------------------------------------------------------------------------------


def _load_pca(path: Path) -> LinearMap:
    """What earlier versions wrote: directions [D, k] in float32, without a format of steps."""
    tensors, _ = _files.load_tensors("map", path, PCA_FORMAT, ("components",))
    return LinearMap(tensors["components"])


FORMATS: dict[str, Callable[[Path, str], Mapping]] = {
    "semobridge-ext bridge 1": lambda path, name: _of_bridge(Bridge.load(path), name),
    PCA_FORMAT: lambda path, name: _of_pca(_load_pca(path), name),
    "semobridge-ext isoclip 1": lambda path, name: _of_isoclip(IsoCLIP.load(path), name),
    "semobridge-ext linear map 1": lambda path, name: _of_linear(LinearMap.load(path), name),
}


def load(path: Path) -> Mapping:
    """A mapping from the file that its `.save` wrote."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise ValueError(
            f"map: --mapping must be {', '.join(MAKERS)} or an existing .safetensors file, got '{path}'; "
            "a mapping's .save() writes one"
        )
    try:
        with safe_open(path, framework="pt") as file:
            kind = (file.metadata() or {}).get("format")
    except SafetensorError as error:
        raise ValueError(
            f"map: --mapping {path} must be a whole safetensors file, got {error}; "
            "write it again with the mapping's .save()"
        ) from error
    if kind not in FORMATS:
        raise ValueError(
            f"map: --mapping {path} must hold a known mapping, got format {kind!r}; known: "
            f"{', '.join(FORMATS)}"
        )
    return FORMATS[kind](path, path.stem)

"""Mappings by name or file, behind one interface; a new one is an entry in MAKERS or in FORMATS."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from semobridge_ext import _files
from semobridge_ext.bridging import Bridge
from semobridge_ext.cli import models
from semobridge_ext.cli.mapping_fits import matched, unit_mean
from semobridge_ext.cli.shards import Folder
from semobridge_ext.cli.tables import open_features
from semobridge_ext.linear_maps import IsoCLIP, LinearMap, RoleCentering

ATOL, TEMPLATE = 0.3, "a photo of {}"  # where --atol and --template are not given
PCA_FORMAT = "semobridge-ext pca 1"  # read only: PCA is saved as a linear map
PROJECTED, HIDDEN = "projected", "before projection"
IMAGE_ROLE, TEXT_ROLE = "document_image", "query_text"


class Mapping(NamedTuple):
    """`apply` maps image features; `text` maps text features into the same space, None where nothing can."""

    name: str
    takes: str  # PROJECTED or HIDDEN
    apply: Callable[[Tensor], Tensor]  # [n, D] float32 -> [n, M] unit rows
    text: Callable[[Tensor], Tensor] | None
    save: Callable[[Path], None]
    facts: dict[str, Any]
    fuse: Callable[[Tensor, Tensor, float], Tensor] | None = None  # raw text, raw image, the text's weight


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


def _of_roles(roles: RoleCentering, name: str = "centering") -> Mapping:
    if IMAGE_ROLE not in roles.means_:
        raise ValueError(
            f"map: --mapping {name} must hold a mean of {IMAGE_ROLE}, got {', '.join(roles.means_)}; fit "
            "RoleCentering with that role"
        )
    text = fuse = None
    if TEXT_ROLE in roles.means_:
        text, fuse = roles.map_for(TEXT_ROLE), partial(roles.fuse, roles=(TEXT_ROLE, IMAGE_ROLE))
    facts = {"roles": ", ".join(roles.means_)}
    return Mapping(name, PROJECTED, roles.map_for(IMAGE_ROLE), text, roles.save, facts, fuse)


# -- from a name -------------------------------------------------------------------------------------


def _make_bridge(args: argparse.Namespace, folder: Folder, encoder: models.Encoder) -> Mapping:
    return _of_bridge(Bridge.from_clip(encoder.model, atol=ATOL if args.atol is None else args.atol))


def _given_texts(args: argparse.Namespace, folder: Folder, encoder: models.Encoder) -> Tensor:
    """Features [C, D] of --texts, or of the class names of IN."""
    if args.texts is not None:
        lines = Path(args.texts).read_text(encoding="utf-8").splitlines()
        texts = [line for line in lines if line.strip()]
    else:
        texts = models.prompts("map", folder.class_names(), args.template or TEMPLATE)
    if len(texts) < 3:
        raise ValueError(
            f"map: --texts must hold at least 3 texts to be fitted on, got {len(texts)}; "
            "pass a file with one text a line, or extract with labels"
        )
    return encoder.texts(texts)


def _make_pca(args: argparse.Namespace, folder: Folder, encoder: models.Encoder) -> Mapping:
    features = _given_texts(args, folder, encoder)
    most = min(len(features) - 1, features.shape[1])
    k = args.components or min(most, features.shape[1] // 2)
    if k > most:
        raise ValueError(
            f"map: --components must be at most {most} for {len(features)} texts of width "
            f"{features.shape[1]}, got {k}; pass fewer, or more texts"
        )
    return _of_pca(LinearMap.pca(normalize(features.double(), dim=1), k))


def _make_centering(args: argparse.Namespace, folder: Folder, encoder: models.Encoder) -> Mapping:
    fitted_on = folder if args.fit is None else open_features("map", args.fit)
    images = unit_mean(fitted_on)
    texts = normalize(_given_texts(args, folder, encoder).double(), dim=1).mean(dim=0)
    return _of_roles(RoleCentering({IMAGE_ROLE: images, TEXT_ROLE: texts}))


def _make_procrustes(args: argparse.Namespace, folder: Folder, encoder: models.Encoder) -> Mapping:
    if args.onto is None:
        raise ValueError(
            "map: --onto must be given for procrustes, got none; pass the folder of another model's shards "
            "of the same images"
        )
    fitted_on = folder if args.fit is None else open_features("map", args.fit)
    x, y = matched(fitted_on, open_features("map", args.onto))
    turn = LinearMap.procrustes(x, y, center=bool(args.center))
    # The offset is one of unit rows, and shards hold rows of any length.
    unit = LinearMap(torch.eye(x.shape[1], dtype=torch.float64))
    found = _of_linear(LinearMap.compose(unit, turn) if args.center else turn, "procrustes")
    return found._replace(facts={"rows": len(x), "center": bool(args.center)})


def _make_isoclip(args: argparse.Namespace, folder: Folder, encoder: models.Encoder) -> Mapping:
    options: dict[str, Any] = {"compress": bool(args.compress)}
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
    "bridge": _make_bridge, "centering": _make_centering, "isoclip": _make_isoclip, "pca": _make_pca,
    "procrustes": _make_procrustes,
}  # fmt: skip

# What each mapping reads; another option would be without effect, and is refused.
OPTIONS: dict[str, tuple[str, ...]] = {
    "bridge": ("atol",),
    "centering": ("texts", "template", "fit"),
    "isoclip": ("k_top", "k_bottom", "published", "compress"),
    "pca": ("components", "texts", "template"),
    "procrustes": ("onto", "fit", "center"),
}


def _check_options(name: str, args: argparse.Namespace) -> None:
    takes = OPTIONS.get(name, ())
    for option in sorted({option for options in OPTIONS.values() for option in options} - set(takes)):
        value = getattr(args, option)
        if value is None or value is False:
            continue
        flag = "--" + option.replace("_", "-")
        users = " or ".join(other for other, options in OPTIONS.items() if option in options)
        got = flag if value is True else f"{flag} {value}"
        raise ValueError(
            f"map: {flag} must stand with --mapping {users}, got {got} with {name}, which does not read it; "
            "leave it out"
        )


def make(name: str, args: argparse.Namespace, folder: Folder) -> Mapping:
    """A mapping of MAKERS for the model that made the shards, or one from a file."""
    _check_options(name, args)
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
    "semobridge-ext isoclip 2": lambda path, name: _of_isoclip(IsoCLIP.load(path), name),
    "semobridge-ext linear map 1": lambda path, name: _of_linear(LinearMap.load(path), name),
    "semobridge-ext role centering 1": lambda path, name: _of_roles(RoleCentering.load(path), name),
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

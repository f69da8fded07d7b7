"""Mappings by name or file, behind one interface; a new one is an entry in MAKERS or in FORMATS."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

import semobridge_ext
from semobridge_ext import _files
from semobridge_ext.cli import models
from semobridge_ext.cli.shards import Folder

PCA_FORMAT = "semobridge-ext pca 1"
PROJECTED, HIDDEN = "projected", "before projection"


class Mapping(NamedTuple):
    """`apply` carries image features; `text` text features to the same space, None where there is none."""

    name: str
    takes: str  # PROJECTED or HIDDEN
    apply: Callable[[Tensor], Tensor]  # [n, D] float32 -> [n, M] unit rows
    text: Callable[[Tensor], Tensor] | None
    save: Callable[[Path], None]
    facts: dict[str, Any]


class Pca:
    """``norm(f V)`` with V [D, k] the first principal directions of unit text features."""

    def __init__(self, components: Tensor) -> None:
        self.components = components

    @classmethod
    def of_texts(cls, texts: Tensor, k: int) -> Pca:
        rows = normalize(texts.double(), dim=1)
        _, _, directions = torch.linalg.svd(rows - rows.mean(dim=0), full_matrices=False)
        return cls(directions[:k].T.float().contiguous())

    def __call__(self, f: Tensor) -> Tensor:
        return normalize(f @ self.components, dim=-1)

    def save(self, path: Path) -> None:
        _files.save_tensors(path, {"components": self.components}, {"format": PCA_FORMAT})

    @classmethod
    def load(cls, path: Path) -> Pca:
        tensors, _ = _files.load_tensors("map", path, PCA_FORMAT, ("components",))
        return cls(tensors["components"])


# -- from objects ------------------------------------------------------------------------------------


def _of_bridge(bridge: Any, name: str = "bridge") -> Mapping:
    # Bridged images are compared with texts as they are: that is the bridge's point.
    facts = {"rank": bridge.rank, "atol": bridge.atol}
    return Mapping(name, PROJECTED, bridge, lambda t: normalize(t, dim=-1), bridge.save, facts)


def _of_pca(pca: Pca, name: str = "pca") -> Mapping:
    return Mapping(name, PROJECTED, pca, pca, pca.save, {"components": pca.components.shape[1]})


def _of_isoclip(iso: Any, name: str = "isoclip") -> Mapping:
    facts = {key: value for key, value in iso.get_params().items() if not isinstance(value, Tensor)}
    return Mapping(name, HIDDEN, iso.image, None, iso.save, facts)


def _of_linear(linear: Any, name: str = "linear map") -> Mapping:
    return Mapping(name, PROJECTED, linear, linear, linear.save, {"steps": len(linear.steps)})


# -- from a name -------------------------------------------------------------------------------------


def _class(name: str) -> Any:
    """A class of the package that this version may not have."""
    found = getattr(semobridge_ext, name, None)
    if found is None:
        raise NotImplementedError(
            f"map: --mapping must be one that this version has, got one that needs sb.{name}; use "
            "bridge or pca"
        )
    return found


def _make_bridge(args: argparse.Namespace, folder: Folder, encoder: models.Encoder) -> Mapping:
    return _of_bridge(semobridge_ext.Bridge.from_clip(encoder.model, atol=args.atol))


def class_names(folder: Folder) -> list[str]:
    """The labels of a folder of shards, sorted."""
    return sorted({str(label) for label in folder.column("label") if label is not None})


def prompts(names: list[str], template: str) -> list[str]:
    if "{}" not in template:
        raise ValueError(
            f"map: --template must contain {{}}, got '{template}'; write for example 'a photo of {{}}'"
        )
    return [template.replace("{}", name.replace("_", " ")) for name in names]


def _make_pca(args: argparse.Namespace, folder: Folder, encoder: models.Encoder) -> Mapping:
    if args.texts is not None:
        lines = Path(args.texts).read_text(encoding="utf-8").splitlines()
        texts = [line for line in lines if line.strip()]
    else:
        texts = prompts(class_names(folder), args.template)
    if len(texts) < 3:
        raise ValueError(
            f"map: --texts must give the principal directions at least 3 texts, got {len(texts)}; "
            "pass a file with one text a line, or extract with labels"
        )
    features = encoder.texts(texts)
    k = args.components or features.shape[1] // 2
    most = min(len(texts) - 1, features.shape[1])
    if k > most:
        raise ValueError(
            f"map: --components must be at most {most} for {len(texts)} texts of width "
            f"{features.shape[1]}, got "
            f"{k}; pass fewer, or more texts"
        )
    return _of_pca(Pca.of_texts(features, k))


def _make_isoclip(args: argparse.Namespace, folder: Folder, encoder: models.Encoder) -> Mapping:
    options: dict[str, Any] = {"compress": args.compress}
    if args.published is not None:
        options["published"] = args.published
    elif args.k_top is not None and args.k_bottom is not None:
        options |= {"k_top": args.k_top, "k_bottom": args.k_bottom}
    else:
        raise ValueError(
            "map: --k-top and --k-bottom must be given for isoclip, got none; or --published "
            "ViT-B/32 for the "
            "paper's values"
        )
    return _of_isoclip(_class("IsoCLIP").from_clip(encoder.model, **options))


MAKERS: dict[str, Callable[[argparse.Namespace, Folder, models.Encoder], Mapping]] = {
    "bridge": _make_bridge, "isoclip": _make_isoclip, "pca": _make_pca,
}  # fmt: skip


def make(name: str, args: argparse.Namespace, folder: Folder) -> Mapping:
    """A mapping of MAKERS for the model that made the shards, or one from a file."""
    if name not in MAKERS:
        return load(Path(name))
    settings = folder.settings()
    if "model" not in settings:
        raise ValueError(
            f"map: IN must name its model, got {folder.path} without settings.json; pass --mapping "
            "a file that "
            "a mapping's .save() wrote"
        )
    if name == "isoclip":
        _class("IsoCLIP")
    encoder = models.load("map", settings["model"], settings["pretrained"])
    if models.weights_digest(encoder.model) != settings["weights_sha256"]:
        raise ValueError(
            f"map: the model must be the one that made {folder.path}, got other weights under the name "
            f"{settings['model']}; extract again"
        )
    return MAKERS[name](args, folder, encoder)


# -- from a file -------------------------------------------------------------------------------------

FORMATS: dict[str, Callable[[Path, str], Mapping]] = {
    "semobridge-ext bridge 1": lambda p, n: _of_bridge(semobridge_ext.Bridge.load(p), n),
    PCA_FORMAT: lambda p, n: _of_pca(Pca.load(p), n),
    "semobridge-ext isoclip 1": lambda p, n: _of_isoclip(_class("IsoCLIP").load(p), n),
    "semobridge-ext linear map 1": lambda p, n: _of_linear(_class("LinearMap").load(p), n),
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
        raise ValueError(f"map: --mapping {path} must be a whole safetensors file, got {error}") from error
    if kind not in FORMATS:
        raise ValueError(
            f"map: --mapping {path} must hold a known mapping, got format {kind!r}; known: "
            f"{', '.join(FORMATS)}"
        )
    return FORMATS[kind](path, path.stem)

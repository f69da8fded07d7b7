"""Bridges and linear maps: their own files, ONNX graphs and the checkpoints of others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

import semobridge_ext as sb
from semobridge_ext.clip.checkpoints import read_projections
from tests.fuzz.runner import Target, loaded
from tests.fuzz.targets.common import P, rows, saved

S = "safetensors"


def use_bridge(path: Path) -> Sequence[Tensor]:
    b = loaded(sb.Bridge.load(path))
    x = rows(b.text_projection.shape[1])
    b.save(path)
    return [b(x), b(x, normalize=False), b(x, project=False), b.inverse]


def use_map(path: Path) -> Sequence[Tensor]:
    found = loaded(sb.LinearMap.load(path))
    found.save(path)
    return [found(rows(found.in_features))]


def linear_map() -> Any:
    return sb.LinearMap.compose(
        sb.LinearMap(rows(5, 4), rows(5, 1)[0]), sb.LinearMap(rows(6, 5), normalize=True)
    )


def role_centering() -> Any:
    return sb.RoleCentering().fit({"query_text": rows(4), "document_image": rows(4).flip(0)})


def use_role_centering(path: Path) -> Sequence[Tensor]:
    found = loaded(sb.RoleCentering.load(path))
    found.save(path)
    assert repr(found)
    return [found.map_for(role)(rows(len(mean))) for role, mean in found.means_.items()]


def use_onnx(path: Path) -> Sequence[Tensor]:
    found = loaded(sb.LinearMap.from_onnx(path))
    return [found(rows(found.in_features))]


def make_onnx(folder: Path) -> Path:
    linear_map().to_onnx(folder / "file.onnx")
    return folder / "file.onnx"


def isoclip() -> Any:
    g = torch.Generator().manual_seed(1)
    image, text = torch.randn(8, 4, generator=g), torch.randn(6, 4, generator=g)
    return sb.IsoCLIP(image, text, k_top=1, k_bottom=1)


def affine_isoclip() -> Any:
    g = torch.Generator().manual_seed(2)
    biases = {f"{side}_bias": torch.randn(4, generator=g) for side in ("image", "text")}
    given = isoclip()
    return sb.IsoCLIP(given.image_projection, given.text_projection, k_top=1, k_bottom=1, **biases)


def use_isoclip(path: Path) -> Sequence[Tensor]:
    iso = loaded(sb.IsoCLIP.load(path))
    v, t = iso.image_projection.shape[0], iso.text_projection.shape[0]
    iso.save(path)
    return [
        iso.image(rows(v)),
        iso.text(rows(t)),
        iso.image(rows(v), compress=True),
        iso.transform(rows(v if iso.side == "image" else t)),
    ]


# -- checkpoints of others ---------------------------------------------------------------------------


def make_projections(folder: Path) -> Path:
    path = folder / "model.safetensors"
    tensors = {"text_projection": rows(4, 6).sin(), "visual.proj": rows(4, 5).cos()}
    save_file({n: t.contiguous() for n, t in tensors.items()}, path, {"format": "semobridge no format"})
    return path


def use_projections(path: Path) -> Sequence[Tensor]:
    read_projections("Bridge.from_pretrained", path, ("text", "image"), timeout=60)
    loaded(None)
    b, iso = sb.Bridge.from_pretrained(path), sb.IsoCLIP.from_pretrained(path, k_top=1, k_bottom=1)
    x = rows(b.text_projection.shape[1])
    return [b(x), iso.image(rows(iso.image_projection.shape[0]))]


def make_index(folder: Path) -> Path:
    import json

    make_projections(folder)
    path = folder / "model.safetensors.index.json"
    names = {"text_projection": "model.safetensors", "visual.proj": "model.safetensors"}
    path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": names}))
    return path


TARGETS = [
    Target("Bridge.load", S, ("Bridge.load",), saved(P.bridge), use_bridge, sealed=True),
    Target("LinearMap.load", S, ("LinearMap.load",), saved(linear_map), use_map, sealed=True),
    Target(
        "RoleCentering.load",
        S,
        ("RoleCentering.load",),
        saved(role_centering),
        use_role_centering,
        sealed=True,
    ),
    Target("LinearMap.from_onnx", "bytes", ("LinearMap.from_onnx",), make_onnx, use_onnx),
    Target(
        "IsoCLIP.load",
        S,
        ("IsoCLIP.load",),
        saved(isoclip),
        use_isoclip,
        free=("params", "k_top", "k_bottom"),
        sealed=True,
    ),
    Target(
        "IsoCLIP.load, biases",
        S,
        ("IsoCLIP.load",),
        saved(affine_isoclip),
        use_isoclip,
        free=("params", "k_top", "k_bottom"),
        sealed=True,
    ),
    Target(
        "from_pretrained",
        S,
        ("Bridge.from_pretrained", "IsoCLIP.from_pretrained"),
        make_projections,
        use_projections,
        free=("resized", "shape"),
    ),
    Target(
        "from_pretrained, an index",
        "json",
        ("Bridge.from_pretrained", "IsoCLIP.from_pretrained"),
        make_index,
        use_projections,
        depth=1,
    ),
]

"""Bridge, LinearMap, IsoCLIP and diagnose."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import semobridge_ext as sb
from recorded.problems import DTYPES, case, codes, draw, gradients, name_of, projection, unit

WIDTHS = {"480 of 512": (512, 512, 480), "150 of 512": (512, 512, 150), "40 of 48x33": (48, 40, 33)}


def _bridge(width_in: int, width: int, rank: int, **options: Any) -> sb.Bridge:
    return sb.Bridge(projection(width_in, width, rank), text_length=1.7, **options)


def _every_call(b: sb.Bridge, dtype: torch.dtype, rows: tuple[int, ...] = (1, 7, 300)) -> dict[str, Any]:
    t, d = b.text_projection.shape
    found: dict[str, Any] = {}
    for project in (True, False):
        for normalize in (True, False):
            options = {"project": project, "normalize": normalize}
            calls = {f"{n} rows": b(draw(n, n, d, dtype=dtype), **options) for n in rows}
            shots = draw(1, 4, 3, d, dtype=dtype)
            calls["shots"] = b(shots, **options)
            for name, bias in (("tau", draw(2, t)), ("class", draw(3, 4, t)), ("full", draw(4, 4, 3, t))):
                calls[f"bias {name}"] = b(shots, class_bias=bias.to(dtype), **options)
            found[f"project={project}, normalize={normalize}"] = calls
    return found


@case
def bridge() -> Any:
    found: dict[str, Any] = {}
    for name, (t, d, rank) in WIDTHS.items():
        b = _bridge(t, d, rank)
        found[name] = {"state": [b.inverse, b.projector, b.rank]}
        for dtype in DTYPES:
            found[name][name_of(dtype)] = _every_call(b, dtype)
        trained = _bridge(t, d, rank)
        with torch.no_grad():
            trained.inverse.add_(0.01 * draw(9, d, t))
        found[name]["trained"] = _every_call(trained, torch.float32), trained.rank, trained.projector
    found["float64"] = _every_call(_bridge(48, 40, 33).double(), torch.float64)
    found["bfloat16"] = _every_call(_bridge(48, 40, 33).bfloat16(), torch.bfloat16)
    found["atol"] = _every_call(_bridge(48, 40, 33, atol=1.0), torch.float32)
    with sb.backend("eager"):
        found["eager"] = {name_of(d): _every_call(_bridge(48, 40, 33), d) for d in DTYPES}
    return found


@case
def bridge_gradients() -> Any:
    found: dict[str, Any] = {}
    for options in ({}, {"normalize": False}, {"project": False}):
        b = _bridge(48, 40, 33)
        out = gradients(b, {"img_feats": draw(1, 6, 3, 40), "class_bias": draw(2, 6, 48)}, **options)
        b.inverse.requires_grad_()
        (b(draw(3, 50, 40), **options) * draw(4, 1)).sum().backward()
        found[str(options)] = {**out, "grad_inverse": b.inverse.grad}
    return found


@case
def bridge_files_and_default() -> Any:
    b = _bridge(48, 40, 33)
    with torch.no_grad():
        b.inverse.mul_(1.01)
    x = draw(1, 5, 40)
    with tempfile.TemporaryDirectory() as folder:
        b.save(Path(folder) / "bridge.safetensors")
        loaded = sb.Bridge.load(Path(folder) / "bridge.safetensors")
    model, _, _ = sb.load_picto_clip()
    picto, f = sb.Bridge.from_clip(model), draw(2, 6, 192)
    found = {
        "loaded": [loaded.inverse, loaded.text_projection, loaded(x), loaded(x, normalize=False)],
        "copy": copy.deepcopy(b)(x),
        "state_dict": dict(b.state_dict()),
        "from_clip": [picto.inverse, picto.rank, picto.projector, _every_call(picto, torch.float32)],
    }
    previous = sb.use("picto")
    found["use picto"] = [previous.inverse, sb.bridge(f), sb.bridge(f, normalize=False)]
    sb.use(b)
    found["use"] = sb.bridge(x), sb.bridge(x, project=False)
    return found


@case
def from_pretrained() -> Any:
    state = {"text_projection": projection(48, 40, 33), "visual.proj": draw(3, 64, 40)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "open_clip_model.safetensors"
        save_file({**state, "logit_scale": torch.ones(())}, path)
        b = sb.Bridge.from_pretrained(path)
        iso = sb.IsoCLIP.from_pretrained(path, k_top=4, k_bottom=2)
        return b.inverse, b(draw(1, 5, 40)), iso.image(draw(2, 5, 64)), iso.text(draw(4, 5, 48))


@case
def linear_map() -> Any:
    rows = draw(1, 200, 40)
    make = sb.LinearMap
    maps = {
        "matrix": make(draw(2, 40, 25), draw(3, 25)),
        "raw": make(draw(2, 40, 25), normalize=False),
        "from_bridge": make.from_bridge(_bridge(48, 40, 33)),
        "centering": make.centering(rows.mean(dim=0)),
        "pca": make.pca(rows, 12),
        "pca centred": make.pca(rows, 40, center=True),
        "whitening": make.whitening(rows),
        "whitening short": make.whitening(rows, k=9, shrinkage=0.1),
    }
    first, second, third = maps["centering"], maps["from_bridge"], maps["whitening"]
    maps["two"] = make.compose(first, second)
    maps["three"] = make.compose(first, second, third)
    maps["raw chain"] = make.compose(maps["pca"].with_norm(False), make(draw(5, 12, 8), draw(6, 8)))
    found: dict[str, Any] = {}
    for name, m in maps.items():
        folded = m.fold()
        found[name] = {
            "steps": [tuple(s) for s in m.steps],
            "folded": [tuple(s) for s in folded.steps],
            "grad": gradients(m, {"x": draw(7, 5, 40)}),
            "without norm": m.with_norm(False)(draw(7, 5, 40)),
        }
        for dtype in DTYPES:
            for n in (1, 7, 300):
                x = draw(n, n, 40, dtype=dtype)
                found[name][f"{name_of(dtype)} {n}"] = m(x), folded(x)
        with sb.backend("eager"):
            found[name]["eager"] = m(draw(7, 5, 40))
        if len(folded.steps) == 1:
            found[name]["matrix"] = m.matrix, m.offset
    return found


@case
def linear_map_files() -> Any:
    import faiss

    rows, found = draw(1, 200, 40), {}
    maps = {"pca": sb.LinearMap.pca(rows, 12, center=True), "whitening": sb.LinearMap.whitening(rows)}
    maps["chain"] = sb.LinearMap.compose(sb.LinearMap.centering(rows[0]), maps["whitening"])
    for name, m in maps.items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "map"
            m.save(path)
            loaded = sb.LinearMap.load(path)
            onnx: dict[str, Any] = {}
            for dtype in (torch.float32, torch.float64):
                m.to_onnx(path, dtype=dtype)
                onnx[name_of(dtype)] = [tuple(s) for s in sb.LinearMap.from_onnx(path).steps]
        chain = m.to_faiss()
        found[name] = {
            "loaded": [tuple(s) for s in loaded.steps],
            "onnx": onnx,
            "faiss": [
                [faiss.vector_to_array(t.A), faiss.vector_to_array(t.b)]
                for t in map(faiss.downcast_VectorTransform, chain)
                if isinstance(t, faiss.LinearTransform)
            ],
            "from_faiss": [tuple(s) for s in sb.LinearMap.from_faiss(chain).steps],
        }
    return found


def _iso_calls(iso: sb.IsoCLIP, v: int, t: int) -> dict[str, Any]:
    x, y, labels = draw(1, 90, v), draw(2, 30, t), codes(3, 90, 8)
    found: dict[str, Any] = {"singular": iso.singular_values, "params": list(iso.get_params(deep=False))}
    for compress in (False, True):
        found[f"compress={compress}"] = {
            "image": iso.image(x, compress=compress), "text": iso.text(y, compress=compress),
            "map": [tuple(s) for s in iso.map("image", compress=compress).steps],
            "text map": iso.map("text", compress=compress, normalize=False).matrix,
            "class_means": iso.class_means(x, labels, compress=compress)[0],
        }  # fmt: skip
    for dtype in DTYPES:
        found[name_of(dtype)] = iso.image(x.to(dtype)), iso.text(y.to(dtype))
    found["native"] = iso.native_map("image")(x), iso.native_map("text", normalize=False)(y)
    found["topk"] = iso.topk(x[:10], x, 5, exclude=torch.arange(10))
    found["transform"] = iso.transform(x), iso.transform(x.numpy()), iso.fit_transform(x)
    return found


@case
def isoclip() -> Any:
    a, w = draw(1, 64, 40), draw(2, 48, 40)
    model, _, _ = sb.load_picto_clip()
    v = sb.clip.image_projection(model).shape[0]
    iso = sb.IsoCLIP(a, w, k_top=6, k_bottom=3, text_k_top=2, text_k_bottom=1)
    large = sb.IsoCLIP.from_clip(model, k_top=20, k_bottom=10)
    found = {"made": _iso_calls(iso, 64, 48), "picto": _iso_calls(large, v, 192)}
    x, labels = draw(3, 120, 64) + 2 * draw(4, 6, 64)[codes(5, 120, 6)], codes(5, 120, 6)
    for name, tuned in {
        "tune": sb.IsoCLIP(a, w).tune(x, labels),
        "tune metric": sb.IsoCLIP(a, w).tune(x, labels, k_top=(0, 3, 9), k_bottom=(0, 5), metric="Recall@1"),
        "tune text": sb.IsoCLIP(a, w).tune(x[:, :48], labels, side="text"),
        "fit": sb.IsoCLIP(a, w, compress=True).fit(x, labels),
    }.items():
        cuts = {n: value for n, value in vars(tuned).items() if "k_" in n}
        found[name] = {"cuts": cuts, "search": tuned.search_}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "iso"
        iso.save(path)
        found["loaded"] = _iso_calls(sb.IsoCLIP.load(path), 64, 48)
    found["grad"] = gradients(lambda x: iso.image(x), {"x": draw(6, 4, 64)})
    return found


@case
def published_isoclip() -> Any:
    iso = sb.IsoCLIP(draw(1, 768, 512), draw(2, 512, 512))
    model = torch.nn.Module()
    model.visual = torch.nn.Module()
    model.visual.proj, model.text_projection = iso.image_projection, iso.text_projection
    iso = sb.IsoCLIP.from_clip(model, published="ViT-B/32")
    return [iso.k_top, iso.k_bottom, iso.text_k_top, iso.text_k_bottom, iso.image(draw(3, 4, 768))]


@case
def diagnose() -> Any:
    labels = codes(1, 240, 12)
    x = draw(2, 12, 24)[labels] + 1.5 * draw(3, 240, 24)
    text = draw(4, 12, 24)
    center = sb.LinearMap.centering(x.mean(dim=0))
    reports = {
        "plain": sb.diagnose(x, labels, resamples=80),
        "mapped": sb.diagnose(x, labels, center, other=text, resamples=80, recall_at=(1, 3)),
        "classes": sb.diagnose(x, labels, unit(5, 240, 24), resamples=80, resample="classes", seed=3),
        "other": sb.diagnose(x, labels, center, baseline=x + 1, other=text, other_mapping=center,
                             other_baseline=text + 1, resamples=40, bins=50, neighbours=4, confidence=0.8),
        "float64": sb.diagnose(x.double(), [f"c{i}" for i in labels.tolist()], resamples=40),
    }  # fmt: skip
    found: dict[str, Any] = {}
    for name, report in reports.items():
        sides = [side for side in (report.before, report.after) if side is not None]
        found[name] = {
            "figures": report.to_dict(),
            "curves": [[side.intra, side.inter, side.edges, side.spectrum] for side in sides],
        }
    return found

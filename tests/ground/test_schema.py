"""Every loader refuses a file that does not hold what `save` writes, with a ValueError that names it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

import semobridge_ext as sb
from semobridge_ext import _schema
from tests.support.checksums import save_resealed
from tests.support.fresh import Program, run_fresh
from tests.support.problems import make

NAMES = ["a", "b", "c", "d"]


def support() -> sb.SupportSet:
    return sb.SupportSet(torch.randn(6, 4), torch.arange(6) % 3, 3, weights=torch.rand(6))


def few_shot(kind: str) -> Callable:
    def made() -> Any:
        p = make(4, 2)
        y = [NAMES[i] for i in p.labels.tolist()]
        clf = {
            "SeMoBridgeClassifier": lambda: sb.SeMoBridgeClassifier(p.bridge(), p.text, class_names=NAMES),
            "SeMoBridgeT": lambda: sb.SeMoBridgeT(p.bridge(), p.text, p.hidden, class_names=NAMES, steps=2),
            "TipAdapter": lambda: sb.TipAdapter(p.text, class_names=NAMES),
            "APE": lambda: sb.APE(p.text, class_names=NAMES),
            "ZeroShot": lambda: sb.ZeroShot(p.text, class_names=NAMES),
            "NearestClassMean": sb.NearestClassMean,
            "LDA": sb.LDA,
        }[kind]()
        return clf.fit() if kind == "ZeroShot" else clf.fit(p.shots, y)

    return made


SAVED: dict[str, Callable[[], Any]] = {
    "Bridge": lambda: sb.Bridge(torch.randn(5, 4)),
    "LinearMap": lambda: sb.LinearMap.compose(
        sb.LinearMap(torch.randn(4, 3), torch.randn(3)), sb.LinearMap(torch.randn(3, 5))
    ),
    "IsoCLIP": lambda: sb.IsoCLIP(torch.randn(8, 4), torch.randn(6, 4), k_top=1, k_bottom=1),
    "SupportSet": support,
    **{
        kind: few_shot(kind)
        for kind in ("SeMoBridgeClassifier", "SeMoBridgeT", "TipAdapter", "APE", "ZeroShot",
                     "NearestClassMean", "LDA")
    },
}  # fmt: skip
# Axes that no other tensor of the file shares, and fields that may be anything of their kind.
FREE = {
    ("LinearMap", "matrix_0", "a longer first axis"), ("IsoCLIP", "image_projection", "a longer first axis"),
    ("IsoCLIP", "text_projection", "a longer first axis"), ("SupportSet", "keys", "a shorter second axis"),
    ("SeMoBridgeT", "losses", "a longer first axis"), ("SeMoBridgeT", "losses", "empty"),
    ("LinearMap", "matrix_1", "a shorter second axis"),
}  # fmt: skip
FREE_FIELDS = ("validation = ", "scale = -1.5", "params = {}", "numbers = {}", "bridge = None")
UNCHECKED = {("SupportSet", "keys"), ("SupportSet", "weights")}  # NaN stays in its class; read when needed


def tensor_changes(name: str, value: Tensor) -> Iterator[tuple[str, Tensor]]:
    yield "another rank", value.unsqueeze(0)
    yield "a longer first axis", torch.cat([value, value[:1]])
    if value.dim() == 2:
        yield "a shorter second axis", value[:, :-1].contiguous()
    yield "empty", value[:0].contiguous()
    if value.is_floating_point():
        yield "integers", value.long()
        spoiled = value.clone()
        spoiled.flatten()[0] = float("nan")
        yield "NaN", spoiled
    else:
        yield "floats", value.double()
        yield "negative", value - 1000
        if name in ("labels_", "labels", "channels_"):
            yield "out of range", value + 1000


def field_changes(meta: dict[str, str]) -> Iterator[tuple[str, dict[str, str]]]:
    for name in set(meta) - {"format", "tensors", "checksum"}:
        for word in ("", "{", "null", "[]", "7", '"x"', "nan", "-1"):
            if word != "7" or name not in ("atol", "text_length", "num_classes"):
                yield f"{name} = {word}", meta | {name: word}
    values = json.loads(meta.get("fields", "{}")) if meta.get("fields", "").startswith("{") else {}
    for name, value in values.items():
        for other in (None, [], "x", {}, [1e400], -1.5):
            what = f"{name} = {other}"
            if other != value and not what.startswith(FREE_FIELDS):
                yield what, meta | {"fields": json.dumps(values | {name: other})}


@pytest.fixture(params=SAVED)
def saved(request, tmp_path: Path) -> tuple[str, Path, Any]:
    made = SAVED[request.param]()
    made.save(tmp_path / "whole")
    return request.param, tmp_path, made


def parts(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, "pt") as file:
        return load_file(path), dict(file.metadata())


def refused(kind: str, path: Path, what: str) -> None:
    try:
        getattr(sb, kind).load(path)
    except ValueError as error:
        assert str(error).startswith(f"{kind}.load: ") and str(path) in str(error), (what, error)
    else:
        pytest.fail(f"{kind}.load took {what}")


def test_tensors(saved):
    kind, folder, _ = saved
    tensors, meta = parts(folder / "whole")
    type(saved[2]).load(folder / "whole")
    for name, value in tensors.items():
        for what, changed in tensor_changes(name, value):
            if (kind, name, what) in FREE or (what == "NaN" and (kind, name) in UNCHECKED):
                continue
            save_resealed(tensors | {name: changed}, folder / "changed", meta)
            refused(kind, folder / "changed", f"{name}: {what}")
        save_resealed({n: t for n, t in tensors.items() if n != name}, folder / "changed", meta)
        if (kind, name) != ("SeMoBridgeT", "tau"):
            refused(kind, folder / "changed", f"no {name}")


def test_fields(saved):
    kind, folder, _ = saved
    tensors, meta = parts(folder / "whole")
    for what, changed in field_changes(meta):
        save_resealed(tensors, folder / "changed", changed)
        refused(kind, folder / "changed", what)


def test_cut_files(saved):
    kind, folder, _ = saved
    data = (folder / "whole").read_bytes()
    for end in (0, 7, 8, 50, len(data) // 2, len(data) - 1):
        (folder / "changed").write_bytes(data[:end])
        refused(kind, folder / "changed", f"{end} of {len(data)} bytes")


def test_a_file_that_shrinks_under_what_was_loaded(tmp_path: Path):
    """Pages of a mapped file that are gone end the process with SIGBUS."""
    sb.Bridge(torch.randn(512, 512)).save(tmp_path / "bridge")
    rows = torch.nn.functional.normalize(torch.randn(4096, 64), dim=1)
    sb.SupportSet(rows, torch.arange(4096) % 5, 5).save(tmp_path / "support")
    code = f"""
import os, torch, semobridge_ext as sb
b, s = sb.Bridge.load({str(tmp_path / "bridge")!r}), sb.SupportSet.load({str(tmp_path / "support")!r})
for name in ("bridge", "support"):
    os.truncate(os.path.join({str(tmp_path)!r}, name), 100)
b(torch.randn(3, 512), normalize=False)
print(float(b.inverse.sum() + b.text_projection.sum()), s.logits(torch.randn(3, 64)).sum())
"""
    (done,) = run_fresh([Program(code)])
    assert done.returncode == 0, (done.returncode, done.stderr[-500:])


def test_letters_bind_across_tensors():
    schema = {
        "a": _schema.Field(("N", "D")),
        "b": _schema.Field(("D", 3)),
        "c": _schema.Field(("N",), _schema.WHOLE),
    }
    whole = {"a": torch.ones(2, 5), "b": torch.ones(5, 3), "c": torch.ones(2).long()}
    sizes: dict[str, int] = {}
    _schema.check("f", "p", whole, schema, sizes)
    assert sizes == {"N": 2, "D": 5}
    with pytest.raises(
        ValueError, match=r"f: p must hold 'b' of shape \[5, 3\], got a float32 tensor of shape \[4, 3\]"
    ):
        _schema.check("f", "p", whole | {"b": torch.ones(4, 3)}, schema, {})

"""What people pass by mistake: each is refused in the grammar of errors, by type and by name.

Most cases here once ended in a raw error from below, or in a wrong result without a word; the others
stand beside them.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import open_clip
import pytest
import torch

import semobridge_ext as sb
from semobridge_ext.clip.class_text import ClassText
from semobridge_ext.retrieval import group_shares
from tests.support.misuse import assert_refused

NAN = float("nan")

ROWS = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 0, 1, 1, 2, 2])
TEXT = ROWS[:3]
WHOLE_TEXT = ClassText(TEXT, TEXT, 1.0)


@cache
def bridge() -> sb.Bridge:
    return sb.Bridge(torch.eye(4))


@cache
def model() -> Any:
    torch.manual_seed(0)
    vision = {"image_size": 32, "patch_size": 16, "width": 32, "layers": 1, "head_width": 16}
    return open_clip.CLIP(16, vision, {"context_length": 12, "width": 32, "heads": 2, "layers": 1})


def oti(**options: Any) -> Any:
    return sb.oti(model(), torch.ones(2, 16), **{"steps": 1, **options})


def nested() -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls them a prototype
        return torch.nested.nested_tensor([ROWS[:2], ROWS[:3]])


def jagged() -> torch.Tensor:
    return torch.nested.nested_tensor([ROWS[:2], ROWS[:3]], layout=torch.jagged)


META = torch.empty(6, 4, device="meta")

# name: (call, type, what the message holds)
CASES: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    # nested tensors
    "bridge, nested": (lambda: sb.bridge(nested(), bridge()), TypeError, "a nested float32 tensor"),
    "bridge, jagged": (lambda: sb.bridge(jagged(), bridge()), TypeError, "a nested float32 tensor"),
    "Bridge, nested": (lambda: sb.Bridge(nested()), TypeError, "text_projection must be a dense"),
    "topk queries, nested": (lambda: sb.topk(nested(), ROWS, 1), TypeError, "queries must be a dense"),
    "topk gallery, nested": (lambda: sb.topk(ROWS, nested(), 1), TypeError, "gallery must be a dense"),
    "support keys, nested": (
        lambda: sb.support_logits(ROWS, nested(), LABELS, 3), TypeError, "keys must be a dense",
    ),
    "metrics, nested": (
        lambda: sb.retrieval_metrics(nested(), ROWS, LABELS, LABELS), TypeError, "query must be a dense",
    ),
    "map, nested": (lambda: sb.LinearMap(torch.eye(4))(nested()), TypeError, "x must be a dense"),
    "Gallery, nested": (lambda: sb.Gallery(nested()), TypeError, "features must be a dense"),
    "fit, nested": (lambda: sb.GDA(TEXT).fit(nested(), LABELS), TypeError, "X must be a dense"),
    "oti, nested": (lambda: sb.oti(model(), nested(), steps=1), TypeError, "img_feats must be a dense"),
    # meta tensors
    "Bridge, meta": (lambda: sb.Bridge(META), ValueError, "hold values, got .* on meta"),
    "pca, meta": (lambda: sb.LinearMap.pca(META, 2), ValueError, "hold values, got .* on meta"),
    "Gallery, meta": (lambda: sb.Gallery(META), ValueError, "hold values, got .* on meta"),
    "fit, meta": (lambda: sb.GDA(TEXT).fit(META, LABELS), ValueError, "hold values, got .* on meta"),
    "diagnose, meta": (lambda: sb.diagnose(META, LABELS), ValueError, "hold values, got .* on meta"),
    "metrics, meta": (
        lambda: sb.retrieval_metrics(META, META, LABELS, LABELS), ValueError, "hold values, got .* on meta",
    ),
    # arrays of other kinds
    "bridge, whole numbers": (
        lambda: sb.bridge(np.ones((2, 4), int), bridge()), TypeError, "an array of int64; convert",
    ),
    "topk, complex": (lambda: sb.topk(np.ones((2, 4), complex), ROWS, 1), TypeError, "an array of complex"),
    "Gallery, objects": (lambda: sb.Gallery(np.array([["a", 1]], object)), TypeError, "an array of object"),
    # numbers
    "SeMoBridge alpha='x'": (
        lambda: sb.SeMoBridgeClassifier(bridge(), TEXT, alpha="x").fit(ROWS, LABELS),
        TypeError, "alpha must be a number, got str 'x'",
    ),
    "SeMoBridge alpha=None": (
        lambda: sb.SeMoBridgeClassifier(bridge(), TEXT, alpha=None).fit(ROWS, LABELS),
        TypeError, "alpha must be a number, got NoneType None",
    ),
    "TipAdapter alpha='x'": (
        lambda: sb.TipAdapter(TEXT, alpha="x").fit(ROWS, LABELS), TypeError, "alpha must be a number",
    ),
    "TipAdapter alpha set to NaN": (
        lambda: sb.TipAdapter(TEXT).fit(ROWS, LABELS).set_params(alpha=NAN).predict(ROWS),
        ValueError, "TipAdapter.predict: alpha must be finite",
    ),
    "GDA alpha set to NaN": (
        lambda: sb.GDA(TEXT).fit(ROWS, LABELS).set_params(logit_scale=np.float32("nan")).score(ROWS, LABELS),
        ValueError, "GDA.score: logit_scale must be finite",
    ),
    "params_ with NaN": (lambda: spoiled().predict(ROWS), ValueError, "params_ must hold finite numbers"),
    "LDA shrinkage='x'": (
        lambda: sb.LDA(shrinkage="x").fit(ROWS, LABELS), TypeError, "shrinkage must be a number",
    ),
    "SeMoBridgeT lr='a'": (
        lambda: sb.SeMoBridgeT(bridge(), TEXT, TEXT, lr="a", steps=2).fit(ROWS, LABELS),
        TypeError, "lr must be a number, got str 'a'",
    ),
    "oti lr='a'": (lambda: oti(lr="a"), TypeError, "lr must be a number, got str 'a'"),
    "oti lr=True": (lambda: oti(lr=True), TypeError, "lr must be a number, got bool True"),
    "oti batch_size=0": (lambda: oti(batch_size=0), ValueError, "batch_size must be an int of at least 1"),
    "oti batch_size='a'": (lambda: oti(batch_size="a"), TypeError, "batch_size must be .* got str 'a'"),
    "oti record_steps=5": (lambda: oti(record_steps=5), TypeError, "record_steps must be a sequence"),
    "oti generator=0": (lambda: oti(generator=0), TypeError, "generator must be a torch.Generator"),
    "ovi generator=0": (
        lambda: sb.ovi(model(), torch.ones(2, 16), steps=1, generator=0), TypeError, "ovi: generator must be",
    ),
    "InversionMap generator=0": (
        lambda: sb.InversionMap.fit(model(), torch.ones(4, 16), generator=0), TypeError, "generator must be",
    ),
    "InversionMap refine=5": (
        lambda: sb.InversionMap.fit(model(), torch.ones(4, 16), refine=5), TypeError, "refine must be",
    ),
    "metrics recall_at=5": (
        lambda: sb.retrieval_metrics(ROWS, ROWS, LABELS, LABELS, recall_at=5),
        TypeError, "recall_at must be a sequence of whole numbers, got int 5; pass \\(1, 5, 10\\)",
    ),
    "metrics recall_at=[1.5]": (
        lambda: sb.retrieval_metrics(ROWS, ROWS, LABELS, LABELS, recall_at=[1.5]),
        TypeError, "recall_at must hold ints, got float 1.5",
    ),
    "diagnose recall_at=5": (
        lambda: sb.diagnose(ROWS, LABELS, recall_at=5), TypeError, "recall_at must be a sequence",
    ),
    "revisited precision_at=5": (
        lambda: sb.revisited_metrics(ROWS[:1], ROWS, [[0]], [[1]], [[2]], precision_at=5),
        TypeError, "precision_at must be a sequence",
    ),
    "shares at=5": (lambda: group_shares(ROWS, ROWS, LABELS, at=5), TypeError, "at must be a sequence"),
    "support num_classes=2**40": (
        lambda: sb.support_logits(ROWS, ROWS, LABELS, 2**40), ValueError, "num_classes must be below 2³¹",
    ),
    "SupportSet num_classes=2**40": (
        lambda: sb.SupportSet(ROWS, LABELS, 2**40), ValueError, "num_classes must be below 2³¹",
    ),
    # a result with several parts, given whole
    **{
        f"{name}, a whole ClassText": (call, TypeError, r"got a whole ClassText; pass one .*: \.projected")
        for name, call in {
            "SeMoBridge": lambda: sb.SeMoBridgeClassifier(bridge(), WHOLE_TEXT).fit(ROWS, LABELS),
            "ZeroShot": lambda: sb.ZeroShot(WHOLE_TEXT).fit(ROWS, LABELS),
            "TipAdapter": lambda: sb.TipAdapter(WHOLE_TEXT).fit(ROWS, LABELS),
            "topk": lambda: sb.topk(ROWS, WHOLE_TEXT, 1),
            "bridge": lambda: sb.bridge(WHOLE_TEXT, bridge()),
        }.items()
    },
    # paths and names
    "from_pretrained(123)": (lambda: sb.Bridge.from_pretrained(123), TypeError, "name_or_path .* int 123"),
    "IsoCLIP.from_pretrained(123)": (
        lambda: sb.IsoCLIP.from_pretrained(123), TypeError, "name_or_path .* got int 123",
    ),
    "load(123)": (lambda: sb.Bridge.load(123), TypeError, "Bridge.load: path must be .* got int 123"),
    "load(None)": (lambda: sb.Gallery.load(None), TypeError, "Gallery.load: path must be .* got NoneType"),
    "save(None)": (lambda: bridge().save(None), TypeError, "save: path must be .* got NoneType None"),
    "bridge='other'": (lambda: sb.bridge(ROWS, "other"), TypeError, "a Bridge or 'picto', got str 'other'"),
    # labels
    **{
        f"{name}, a label {kind}": (
            (lambda call=call, y=y: call(y)), ValueError, "got None or NaN in 2 of 6 places \\(first: 1\\)",
        )
        for kind, y in {
            "None": ["a", None, "b", "b", None, "c"],
            "NaN": [0, NAN, 1, 1, 2, NAN],
            "NaN among names": np.array(["a", np.nan, "b", "b", "c", np.nan], dtype=object),
        }.items()
        for name, call in {
            "LDA.fit": lambda y: sb.LDA().fit(ROWS, y),
            "NearestClassMean.fit": lambda y: sb.NearestClassMean().fit(ROWS, y),
            "diagnose": lambda y: sb.diagnose(ROWS, y),
            "metrics": lambda y: sb.retrieval_metrics(ROWS, ROWS, y, y),
            "gcd_accuracy": lambda y: sb.gcd_accuracy(y, LABELS, [0]),
        }.items()
    },
    "support labels, names": (
        lambda: sb.support_logits(ROWS, ROWS, list("aabbcc"), 3), TypeError, "labels must be whole numbers",
    ),
    "support labels, real numbers": (
        lambda: sb.support_logits(ROWS, ROWS, LABELS.float(), 3), TypeError, "labels must be whole numbers",
    ),
    "metrics labels, one string": (
        lambda: sb.retrieval_metrics(ROWS, ROWS, "aabbcc", "aabbcc"),
        TypeError, "query_labels must hold whole numbers or names, got str",
    ),
    "metrics labels, real numbers": (
        lambda: sb.retrieval_metrics(ROWS, ROWS, LABELS.float(), LABELS.float()),
        TypeError, "query_labels must hold whole numbers or names",
    ),
    # scores that are NaN
    "metrics, NaN": (
        lambda: sb.retrieval_metrics(with_nan(), ROWS, LABELS, LABELS),
        ValueError, "NaN in 2 of 6 rows \\(1, 4\\); drop these rows",
    ),
}  # fmt: skip


def spoiled() -> Any:
    clf = sb.SeMoBridgeClassifier(bridge(), TEXT).fit(ROWS, LABELS)
    clf.params_ = clf.params_._replace(alpha=NAN)
    return clf


def with_nan() -> torch.Tensor:
    rows = ROWS.clone()
    rows[1, 2] = rows[4, 0] = NAN
    return rows


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_refused_in_the_grammar_of_errors(name: str) -> None:
    assert_refused(*CASES[name])


def test_a_bare_call_of_backend_warns_that_it_changes_nothing() -> None:
    with pytest.warns(RuntimeWarning, match=r"a call alone, which changes nothing; write: with sb.backend"):
        sb.backend("eager")
        gc.collect()


def test_a_used_backend_warns_of_nothing() -> None:
    from semobridge_ext.runtime.backend import requested

    seen = []

    @sb.backend("eager")
    def decorated(depth: int) -> None:
        seen.append(requested())
        if depth:
            decorated(depth - 1)  # noqa: F821 - deleted below

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        asking = sb.backend("eager")
        assert repr(asking) == "backend('eager'): asks for it inside a with block only"
        with asking, sb.backend("native"):
            assert requested() == "native"
        decorated(2)
        del asking, decorated
        gc.collect()
    assert seen == ["eager"] * 3 and requested() == "auto"
    assert not [str(w.message) for w in caught]


@pytest.mark.parametrize("what", ["bridge", "estimator", "gallery", "support", "map"])
def test_save_makes_a_missing_folder_as_oti_does(what: str, tmp_path: Any) -> None:
    thing = {
        "bridge": bridge, "gallery": lambda: sb.Gallery(ROWS),
        "estimator": lambda: sb.GDA(TEXT).fit(ROWS, LABELS),
        "support": lambda: sb.SupportSet(ROWS, LABELS, 3), "map": lambda: sb.LinearMap(torch.eye(4)),
    }[what]()  # fmt: skip
    path = tmp_path / "none" / "yet" / "x.safetensors"
    thing.save(path)
    type(thing).load(path)
    oti(out=tmp_path / "none" / "either" / "y.safetensors")


def test_a_home_folder_in_a_path_is_resolved(tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    sb.Gallery(ROWS).save("~/a/gallery.safetensors")
    assert (tmp_path / "a" / "gallery.safetensors").is_file()
    assert len(sb.Gallery.load("~/a/gallery.safetensors")) == 6
    sb.LinearMap(torch.eye(4)).save("~/map.safetensors")
    assert sb.LinearMap.load("~/map.safetensors").in_features == 4
    oti(out="~/b/inversion.safetensors")
    assert (tmp_path / "b" / "inversion.safetensors").is_file()
    sb.SeMoBridgeT(bridge(), TEXT, TEXT, steps=2).fit(ROWS, LABELS, checkpoint="~/c/run")
    assert not (tmp_path / "~").exists()


def test_a_home_folder_is_resolved_where_images_and_rows_come_from(tmp_path: Any, monkeypatch: Any) -> None:
    from PIL import Image

    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "photos" / "a.png")
    (tmp_path / "names.txt").write_text("cat\n")
    picto = sb.load_picto_clip()[0]
    for images in ("~/photos", "~/photos/a.png", ["~/photos/a.png"]):
        assert len(sb.encode_images(picto, images, batch_size=np.int64(1)).features) == 1
    assert sb.discovery.read_concepts("~/names.txt") == ["cat"]
    sb.LinearMap(torch.eye(4)).save("~/map.safetensors")
    found = sb.export_gallery(ROWS, "~/out", format="fbin", mapping="~/map.safetensors")
    assert found["rows"] == 6 and (tmp_path / "out" / "gallery.fbin").is_file()


def test_the_command_line_resolves_a_home_folder_in_paths_alone(monkeypatch: Any) -> None:
    from argparse import Namespace
    from pathlib import Path

    from semobridge_ext.cli import _expand_home

    monkeypatch.setenv("HOME", "/home/her")
    args = Namespace(
        out=Path("~/out"), shards=[Path("~/a"), Path("b~")], image=["~/c.png", "~d"], text=["~/word"],
        input="~/e", count=3, csv=None,
    )  # fmt: skip
    _expand_home(args)
    assert vars(args) == {
        "out": Path("/home/her/out"), "shards": [Path("/home/her/a"), Path("b~")],
        "image": ["/home/her/c.png", "~d"], "text": ["~/word"], "input": "/home/her/e",
        "count": 3, "csv": None,
    }  # fmt: skip

"""What the calls refuse: the kind of error, what it tells, and nothing left behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import semobridge_ext as sb

pytest.importorskip("pyarrow.parquet", reason="needed: pip install pyarrow")

REFUSALS: dict[str, tuple[Callable[[Path], Any], type, str]] = {
    "no source": (
        lambda h: sb.extract(h / "none", h / "x", model="picto"), FileNotFoundError,
        "extract: source must be a folder, a list file, a .csv or a .tar, got .*none, which does not exist;",
    ),
    "no path": (lambda h: sb.extract(3, h / "x", model="picto"), TypeError,
                "extract: source must be a str or a path, got int 3"),
    "no model": (lambda h: sb.extract(h / "images", h / "x", model=None), TypeError,
                 "extract: model must be a name, got NoneType None; pass 'picto' for the embedded CLIP"),
    "an unknown model": (lambda h: sb.extract(h / "images", h / "x", model="ViT-B-33"), ValueError,
                         "extract: model must be one of .* known names, got 'ViT-B-33'; did you mean"),
    "no weights": (lambda h: sb.extract(h / "images", h / "x", model="ViT-B-32"), ValueError,
                   "extract: pretrained must be given with model='ViT-B-32', got none;"),
    "no batch": (lambda h: sb.extract(h / "images", h / "x", model="picto", batch_size=0), ValueError,
                 "extract: batch_size must be a whole number from 1 up, got int 0;"),
    "half a worker": (lambda h: sb.extract(h / "images", h / "x", model="picto", workers=0.5), TypeError,
                      "extract: workers must be an int, got float 0.5;"),
    "another dtype": (lambda h: sb.extract(h / "images", h / "x", model="picto", dtype="int8"), ValueError,
                      "extract: dtype must be 'float16' or 'float32', got str 'int8'; choose one"),
    "no flag": (lambda h: sb.extract(h / "images", h / "x", model="picto", normalize=1), TypeError,
                "extract: normalize must be True or False, got int 1;"),
    "other settings": (lambda h: sb.extract(h / "images", h / "feats", model="picto"), ValueError,
                       r"extract: out must hold a run of the same settings .* shard_size 5 \(now 10000\);"),
    "a name of a table": (
        lambda h: sb.extract(h / "images", h / "x.parquet", model="picto"), ValueError,
        "extract: out must be the name of a folder, .*, and pass format='parquet' for a table in it",
    ),
    "an address alone": (lambda h: sb.extract(h / "images", h / "x", model="picto", address="a:1"),
                         ValueError, "extract: address must stand beside engine='ray', got a:1 alone;"),
    "no root": (lambda h: sb.extract("torchvision:DTD", h / "x", model="picto"), ValueError,
                "extract: root must say where .*; pass root=FOLDER, and download=True to fetch into it"),
    "an unknown set": (lambda h: sb.extract("torchvision:XX", h / "x", model="picto", root=h), ValueError,
                       "extract: source must be one of 10 known names, got 'XX';"),
    "onto itself": (lambda h: sb.map_shards(h / "feats", h / "feats", mapping="bridge"), ValueError,
                    "map_shards: out must be another folder than shards, got"),
    "no shards": (lambda h: sb.map_shards(h / "images", h / "x", mapping="bridge"), FileNotFoundError,
                  "map_shards: shards must be a folder with img_emb/img_emb_0.npy, got"),
    "no mapping": (lambda h: sb.map_shards(h / "feats", h / "x", mapping=torch.eye(3)), TypeError,
                   "map_shards: mapping must be a name, a file, or a Bridge, .*, got a float32 tensor of"),
    "an unknown mapping": (lambda h: sb.map_shards(h / "feats", h / "x", mapping="brigde"), ValueError,
                           "map_shards: mapping must be bridge, .* file, got 'brigde';"),
    "no cuts": (lambda h: sb.map_shards(h / "feats", h / "x", mapping="isoclip"), ValueError,
                "map_shards: k_top and k_bottom must be given .* or pass published='ViT-B/32' for"),
    "projected": (lambda h: sb.map_shards(h / "feats", h / "x", mapping="isoclip", k_top=1, k_bottom=1),
                  ValueError, "shards must hold .*; extract the images with before_projection=True for it"),
    "an option of another": (
        lambda h: sb.map_shards(h / "feats", h / "x", mapping="bridge", components=5), ValueError,
        "map_shards: components must stand with mapping pca, got components 5 with bridge, which does not",
    ),
    "an option of a fitted map": (
        lambda h: sb.map_shards(h / "feats", h / "x", mapping=sb.LinearMap(torch.eye(192)), center=True),
        ValueError, "got center=True with a fitted LinearMap, which does not read it; leave it out",
    ),
    "a map of another width": (
        lambda h: sb.map_shards(h / "feats", h / "x", mapping=sb.LinearMap(torch.eye(5))), ValueError,
        "width 5",
    ),
    "one text": (lambda h: sb.map_shards(h / "feats", h / "x", mapping="pca", texts=[1]), TypeError,
                 "map_shards: texts must be a list of texts or a file, got"),
    "two lines": (lambda h: sb.map_shards(h / "feats", h / "x", mapping="pca", texts=["a", "b\nc"]),
                  ValueError, r"map_shards: texts\[1\] must be one line, got"),
    "nothing to read": (lambda h: sb.read_shards(h / "images"), FileNotFoundError,
                        "read_shards: shards must be a folder with img_emb/img_emb_0.npy, got"),
    "a key alone": (lambda h: sb.retrieve(h / "feats", key="a"), ValueError,
                    "retrieve: key must stand beside pairs, got a alone; pass pairs=FILE"),
    "no label": (lambda h: sb.retrieve(h / "feats", label="a"), ValueError,
                 "retrieve: label must be a column of the metadata, got 'a';"),
    "no label of a report": (lambda h: sb.report_shards(h / "feats", label="x"), ValueError,
                             "report_shards: label must be a column of the metadata, got 'x';"),
    "half a shot": (lambda h: sb.report_shards(h / "feats", shots=[1.5]), TypeError,
                    "report_shards: shots must be an int, got float 1.5"),
    "no galleries": (lambda h: sb.retrieve([]), ValueError, r"retrieve: shards must hold one at least, got"),
    "no place": (lambda h: sb.retrieve(h / "feats", recall_at=[0]), ValueError,
                 "retrieve: recall_at must be a whole number from 1 up, got int 0"),
    "no maker": (lambda h: sb.search(h / "feats", text="a", model="picto"), ValueError,
                 "search: model must stand with features that name no model, got picto for .*; leave it out"),
    "no query": (lambda h: sb.search(h / "feats"), ValueError,
                 "search: queries, text or image must be given, got none of them;"),
    "two kinds": (lambda h: sb.search(h / "feats", torch.ones(1, 192), text="a"), ValueError,
                  "search: queries must stand alone, got text beside them;"),
    "another width": (lambda h: sb.search(h / "feats", torch.ones(1, 5)), ValueError,
                      "search: queries must have width 192, got a float32 tensor of shape"),
    "one row": (lambda h: sb.search(h / "feats", torch.ones(192)), ValueError,
                r"search: queries must be \[N, D\], got"),
    "NaN": (lambda h: sb.search(h / "feats", torch.full((2, 192), torch.nan)), ValueError,
            "search: queries must be finite, got NaN or infinity in 2 of 2 rows"),
    "no features": (lambda h: sb.invert_shards(h / "none.npy", h / "o", model="picto"), FileNotFoundError,
                    "invert_shards: shards must be an existing file or picto:<set>, got .*none.npy"),
    "features of no kind": (lambda h: sb.invert_shards(3, h / "o", model="picto"), TypeError,
                            "invert_shards: shards must be a str or a path, got int 3"),
    "no model to invert": (lambda h: sb.invert_shards(h / "feats", h / "o", model=None), TypeError,
                           "invert_shards: model must be a name, got NoneType None; pass 'picto' for"),
    "no pseudo-word": (lambda h: sb.invert_shards(h / "feats", h / "o", model="picto", tokens=0), ValueError,
                       "invert_shards: tokens must be a whole number from 1 up, got int 0"),
    "half a step": (lambda h: sb.invert_shards(h / "feats", h / "o", model="picto", record_steps=[1.5]),
                    TypeError, "invert_shards: record_steps must be an int, got float 1.5"),
    "pilots alone": (lambda h: sb.invert_shards(h / "feats", h / "o", model="picto", pilots=9), ValueError,
                     "invert_shards: pilots must stand beside start, got 9 alone; name the file"),
    "a start of patches": (
        lambda h: sb.invert_shards(h / "feats", h / "o", model="picto", kind="ovi", start="x"), ValueError,
        "invert_shards: start must stand beside kind='oti', got x with ovi; leave it out",
    ),
    "another kind": (lambda h: sb.invert_shards(h / "feats", h / "o", model="picto", kind="owi"), ValueError,
                     "invert_shards: kind must be 'oti' or 'ovi', got str 'owi'; choose one"),
    "no labels": (lambda h: sb.discover_shards(h / "feats", h / "d", classes=3), ValueError,
                  "discover_shards: labels or old must be given, got neither; name a CSV"),
    "both labels": (lambda h: sb.discover_shards(h / "feats", h / "d", classes=3, old="a", labels={}),
                    ValueError, "discover_shards: labels must stand without old, got the labels beside a;"),
    "labels of no image": (lambda h: sb.discover_shards(h / "feats", h / "d", classes=3, labels={"x": "a"}),
                           ValueError, "labels must name images of source, got none of 11 in the labels;"),
    "numbers as labels": (lambda h: sb.discover_shards(h / "feats", h / "d", classes=3, labels={"x": 1}),
                          TypeError, "labels must map paths to labels that are str, or None, got str 'x' to"),
    "a list of labels": (lambda h: sb.discover_shards(h / "feats", h / "d", classes=3, labels=["a"]),
                         TypeError, "discover_shards: labels must be a mapping from paths to labels, or a"),
    "one class": (lambda h: sb.discover_shards(h / "feats", h / "d", classes=1, old="class_00"), ValueError,
                  "discover_shards: classes must be a whole number from 2 up, got int 1;"),
    "another word": (lambda h: sb.discover_shards(h / "feats", h / "d", classes="some", old="class_00"),
                     TypeError, "discover_shards: classes must be an int or 'auto', got str 'some'"),
    "a largest count": (
        lambda h: sb.discover_shards(h / "feats", h / "d", classes=3, max_classes=4, old="class_00"),
        ValueError, "discover_shards: max_classes must stand beside classes='auto', got 4 beside 3;",
    ),
    "fewer classes": (
        lambda h: sb.discover_shards(h / "feats", h / "d", classes=2, old=[f"class_0{i}" for i in range(3)]),
        ValueError, "discover_shards: classes must count the old classes too, got 3 old ones;",
    ),
    "no folder of a label": (lambda h: sb.discover_shards(h / "feats", h / "d", classes=3, old="class_0x"),
                             ValueError, "discover_shards: old must be one of .*, got 'class_0x';"),
    "images without a model": (
        lambda h: sb.discover_shards(h / "images", h / "d", classes=3, old="class_00"), TypeError,
        "discover_shards: model must be a name where images are extracted, got NoneType None; pass 'picto'",
    ),
    "no images": (lambda h: sb.discover_shards(h / "none", h / "d", classes=3, old="a"), FileNotFoundError,
                  "extract: source must be a folder, a list file, a .csv or a .tar, got .*none, which"),
    "no image": (lambda h: sb.search(h / "feats", image="none.png"), FileNotFoundError,
                 "search: image must be an existing file, got none.png; check the name"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(home: Path, case: str) -> None:
    call, kind, told = REFUSALS[case]
    before = sorted(str(p) for p in home.iterdir())
    with pytest.raises(kind, match=told) as caught:
        call(home)
    assert "--" not in str(caught.value)
    left = sorted(str(p) for p in home.iterdir())
    assert [p for p in left if p not in before and any(Path(p).rglob("*.npy"))] == []

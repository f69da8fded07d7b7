"""NumPy in, NumPy out: the values of tensors, over the caller's memory; tensors come back for tensors."""

from __future__ import annotations

import inspect
import json
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from torch import Tensor

import semobridge_ext as sb
from semobridge_ext import _arrays
from semobridge_ext.retrieval import group_shares

ROWS = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([0, 0, 1, 1, 2, 2])
NAMES = ["cat", "cat", "dog", "dog", "eel", "eel"]
EXCLUDE = torch.tensor([0, 1, 2, 3, -1, -1])


@cache
def model() -> Any:
    torch.manual_seed(0)
    vision = {"image_size": 32, "patch_size": 16, "width": 32, "layers": 1, "head_width": 16}
    return open_clip.CLIP(4, vision, {"context_length": 12, "width": 32, "heads": 2, "layers": 1})


def oti(rows: Any) -> Any:
    found = sb.oti(model(), rows, steps=3, record_steps=(1,), generator=torch.Generator().manual_seed(2))
    return found.tokens, found.features, found.losses, found.recorded[1], found.steps_done


# Each takes rows [6, 4] and gives what comes back for them, one value or several.
CALLS: dict[str, Callable[[Any], Any]] = {
    "bridge": lambda x: sb.bridge(x, sb.Bridge(torch.eye(4) + 0.1)),
    "bridge with a bias": lambda x: sb.bridge(
        x, sb.Bridge(torch.eye(4)), class_bias=np.full(4, 0.25, np.float32), normalize=False
    ),
    "Bridge, trained": lambda x: sb.Bridge(torch.eye(4)).requires_grad_()(x),
    "topk": lambda x: tuple(sb.topk(x, x, 2)),
    "topk of a tensor's gallery": lambda x: tuple(sb.topk(x, ROWS, 2, exclude=EXCLUDE.numpy())),
    "topk of a Gallery": lambda x: tuple(sb.topk(x, sb.Gallery(x), 2)),
    "Gallery": lambda x: tuple(sb.Gallery(x, normalize=True).topk(x, 2, exclude=EXCLUDE.tolist())),
    "Gallery, grown": lambda x: tuple(sb.Gallery(x[:3]).add(x[3:]).topk(x, 2, allow=np.arange(6) > 1)),
    "support_logits": lambda x: sb.support_logits(x, x, LABELS, 3, weights=np.arange(6, dtype=np.float32)),
    "SupportSet": lambda x: sb.SupportSet(x, LABELS.numpy(), 3).logits(x),
    "retrieval_metrics": lambda x: tuple(
        sb.retrieval_metrics(x, ROWS, LABELS, LABELS, per_query=True)["per_query"].values()
    ),
    "revisited_metrics": lambda x: tuple(
        sb.revisited_metrics(x[:1], x, [[0]], [[1]], [[2]], per_query=True)["easy"]["per_query"].values()
    ),
    "group_shares": lambda x: group_shares(x, x, LABELS.tolist(), at=np.array([1, 3])),
    "LinearMap": lambda x: sb.LinearMap(torch.eye(4), x[0])(x),
    "pca": lambda x: sb.LinearMap.pca(x, 2)(x),
    "whitening": lambda x: sb.LinearMap.whitening(x)(x),
    "centering": lambda x: sb.LinearMap.centering(x.mean(0))(x),
    "procrustes": lambda x: sb.LinearMap.procrustes(x, x)(x),
    "RoleCentering": lambda x: sb.RoleCentering().fit({"a": x, "b": x[:2]}).fuse(x, x, roles=("a", "b")),
    "IsoCLIP": lambda x: sb.IsoCLIP(ROWS[:4], ROWS[1:5], k_top=1, k_bottom=0).image(x),
    "IsoCLIP.class_means": lambda x: sb.IsoCLIP(ROWS[:4], ROWS[1:5], k_top=1, k_bottom=0).class_means(
        x, NAMES
    )[0],
    "oti": oti,
}


def parts(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", CALLS)
def test_arrays_give_arrays_of_the_values_that_tensors_give(name: str, dtype: Any) -> None:
    rows = ROWS.numpy().astype(dtype)
    before = rows.copy()
    found, want = parts(CALLS[name](rows)), parts(CALLS[name](torch.from_numpy(before)))
    assert len(found) == len(want) > 0
    for array, value in zip(found, want, strict=True):
        assert type(array) is np.ndarray and isinstance(value, Tensor)
        assert array.dtype == value.detach().numpy().dtype
        np.testing.assert_array_equal(array, value.detach().numpy())
        assert np.isfinite(array).all() or np.isnan(array).all() or name == "retrieval_metrics"
    np.testing.assert_array_equal(rows, before)


def unaligned(rows: np.ndarray) -> np.ndarray:
    held = np.zeros(len(rows), dtype=[("flag", "i1"), ("row", rows.dtype, rows.shape[1])])
    held["row"] = rows
    return held["row"]


LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "as it is": lambda a: a,
    "transposed": lambda a: np.asfortranarray(a),
    "every second": lambda a: np.repeat(a, 2, axis=0)[::2],
    "backwards": lambda a: a[::-1].copy()[::-1],
    "of the other order of bytes": lambda a: a.astype(a.dtype.newbyteorder()),
    "fields of records": unaligned,
    "none": lambda a: a[:0],
}


@pytest.mark.parametrize("locked", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_is_read(layout: str, locked: bool) -> None:
    array = LAYOUTS[layout](ROWS.numpy().copy())
    array.flags.writeable = not locked
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch's of read-only arrays
        found = _arrays.tensor("f", "x", array)
    assert found.shape == array.shape and found.dtype is torch.float32
    np.testing.assert_array_equal(found.numpy(), array)


@pytest.mark.parametrize("locked", [False, True])
def test_the_memory_is_the_callers_own(locked: bool) -> None:
    array = ROWS.numpy().copy()
    where = array.ctypes.data
    array.flags.writeable = not locked
    found = _arrays.tensor("f", "x", array)
    assert found.data_ptr() == where
    del array  # the tensor keeps it
    assert torch.equal(found, ROWS)


def test_a_mapped_file_is_searched_where_it_lies(tmp_path: Any) -> None:
    np.save(tmp_path / "rows.npy", ROWS.numpy())
    rows = np.load(tmp_path / "rows.npy", mmap_mode="r")
    gallery = sb.Gallery(rows)
    assert gallery._held.segments[0].room.data_ptr() == rows.ctypes.data
    assert gallery.topk(rows, 1).indices.shape == (6, 1)


KINDS: dict[str, Callable[[Tensor], Any]] = {
    "int64": lambda y: y,
    "int32": lambda y: y.int(),
    "uint8": lambda y: y.to(torch.uint8),
    "uint64": lambda y: y.to(torch.uint64),
    "array": lambda y: y.numpy(),
    "uint64 array": lambda y: y.numpy().astype(np.uint64),
    "int32 array": lambda y: y.numpy().astype(np.int32),
    "list": lambda y: y.tolist(),
    "list of NumPy's": lambda y: list(y.numpy()),
    "tuple": lambda y: tuple(y.tolist()),
}


@pytest.mark.parametrize("kind", KINDS)
def test_whole_numbers_of_every_kind_are_labels(kind: str) -> None:
    y = KINDS[kind](LABELS)
    want = sb.support_logits(ROWS, ROWS, LABELS, 3)
    assert torch.equal(sb.support_logits(ROWS, ROWS, y, np.int64(3), beta=np.float32(1)), want)
    assert torch.equal(sb.SupportSet(ROWS, y, 3).logits(ROWS), want)
    assert sb.retrieval_metrics(ROWS, ROWS, y, y) == sb.retrieval_metrics(ROWS, ROWS, LABELS, LABELS)
    pairs = torch.tensor([[i, (i + 1) % 6] for i in range(6)])
    if kind not in ("list", "list of NumPy's", "tuple"):  # a list holds a list for each query
        relevant = KINDS[kind](pairs)
        found = sb.retrieval_metrics(ROWS, ROWS, relevant=relevant)
        assert found == sb.retrieval_metrics(ROWS, ROWS, relevant=pairs)
    without = sb.topk(ROWS, ROWS, 6).indices.tolist()
    own = KINDS[kind](torch.arange(6))
    found = sb.topk(ROWS, ROWS, 5, exclude=own).indices.tolist()
    assert found == [[g for g in row if g != i] for i, row in enumerate(without)]


def test_whole_numbers_beyond_63_bits_are_names_or_refused() -> None:
    large = torch.tensor([2**63 + i for i in LABELS.tolist()], dtype=torch.uint64)
    want = sb.retrieval_metrics(ROWS, ROWS, LABELS, LABELS)
    for y in (large, large.numpy(), large.tolist()):
        assert sb.retrieval_metrics(ROWS, ROWS, y, y) == want
        with pytest.raises(TypeError, match="labels must be whole numbers"):
            sb.support_logits(ROWS, ROWS, y, 3)


@pytest.mark.parametrize("names", [NAMES, tuple(NAMES), np.array(NAMES), np.array(NAMES, dtype=object)])
def test_names_are_labels_of_metrics(names: Any) -> None:
    want = sb.retrieval_metrics(ROWS, ROWS, LABELS, LABELS, recall_at=np.array([1, 2]), per_query=True)
    found = sb.retrieval_metrics(ROWS, ROWS, names, names, recall_at=[1, 2], per_query=True)
    assert {k: v for k, v in found.items() if k != "per_query"} == {
        k: v for k, v in want.items() if k != "per_query"
    }
    same = sb.retrieval_metrics(ROWS, ROWS, names, names, same_set=True)
    assert same == sb.retrieval_metrics(ROWS, ROWS, LABELS, LABELS, same_set=True)


def test_names_of_two_sides_are_numbered_in_common() -> None:
    """A gallery in another order, and with a name of its own: by hand, ⟨q, g⟩ ranks the gallery 1, 0, 2."""
    query, gallery = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, 0.0], [0.9, 0.0], [0.1, 0.0]])
    found = sb.retrieval_metrics(query, gallery, ["b"], ["b", "a", "b"], recall_at=(1, 2))
    assert found["mAP"] == pytest.approx((1 / 2 + 2 / 3) / 2) and found["Recall@1"] == 0
    with pytest.raises(ValueError, match="no common label"):
        sb.retrieval_metrics(query, gallery, [1], ["1", "2", "3"])


def test_numbers_of_numpy_are_numbers(tmp_path: Any) -> None:
    bridge = sb.Bridge(torch.eye(4), atol=np.float32(0.25), text_length=np.int64(2))
    assert (bridge.atol, bridge.text_length) == (0.25, 2.0)
    assert sb.topk(ROWS, ROWS, np.int32(2)).indices.shape == (6, 2)
    assert sb.LinearMap.pca(ROWS, np.int64(2)).out_features == 2
    out = tmp_path / "inversion.safetensors"
    options = {
        "steps": np.int64(2),
        "lr": np.float32(0.02),
        "weight_decay": np.float64(0),
        "batch_size": np.int8(4),
    }
    first = sb.oti(model(), ROWS, init=np.zeros((1, 32), np.float32), out=out, **options)
    again = sb.oti(model(), ROWS, init=torch.zeros(1, 32), out=out, **options)
    assert torch.equal(first.tokens, again.tokens)
    for make in (
        lambda: sb.SeMoBridgeClassifier(bridge, ROWS[:3], alpha=np.float32(2), s=np.int64(0)),
        lambda: sb.TipAdapter(ROWS[:3], alpha=np.float32(2), beta=np.float16(1)),
        lambda: sb.LDA(shrinkage=np.float32(0.5)),
    ):
        clf: Any = make().fit(ROWS, LABELS)
        clf.save(tmp_path / "clf")
        assert type(clf).load(tmp_path / "clf").predict(ROWS).tolist() == clf.predict(ROWS).tolist()


def test_results_of_numbers_of_numpy_are_written(tmp_path: Any) -> None:
    given = {"recall_at": np.array([1, 2]), "resamples": np.int64(9), "confidence": np.float32(0.5)}
    found = sb.diagnose(ROWS, LABELS, **given, seed=np.int64(3), neighbours=np.int8(2))
    plain = sb.diagnose(ROWS, LABELS, recall_at=(1, 2), resamples=9, confidence=0.5, seed=3, neighbours=2)
    assert json.dumps(found.to_dict()) == json.dumps(plain.to_dict())
    prompts, names = (
        torch.randn(2, 2, 4, generator=torch.Generator().manual_seed(0)),
        [np.int64(7), np.str_("a")],
    )
    tuned = sb.RETune(epochs=1).fit(ROWS, torch.eye(2).repeat(3, 1), prompts, findings=names)
    tuned.save(tmp_path / "tuned")
    assert sb.RETune.load(tmp_path / "tuned").findings_ == [7, "a"] == tuned.findings_
    assert [type(name) for name in tuned.findings_] == [int, str]


def test_an_inversion_in_arrays_fits_a_map() -> None:
    rows = torch.randn(8, 4, generator=torch.Generator().manual_seed(3)).numpy()
    found = sb.oti(model(), rows, steps=2)
    phi = sb.InversionMap.from_inversion(model(), rows, found, ridge=np.float32(0.5))
    assert type(phi(rows)) is np.ndarray
    np.testing.assert_array_equal(phi(rows), phi(torch.from_numpy(rows)).numpy())


def test_the_bridge_is_a_positional_argument_and_has_a_name() -> None:
    bridge = sb.Bridge(torch.eye(4) + 0.1)
    assert torch.equal(sb.bridge(ROWS, bridge), bridge(ROWS))
    wide = torch.randn(2, 192, generator=torch.Generator().manual_seed(0))
    assert torch.equal(sb.bridge(wide, "picto"), sb.bridge(wide, bridge=sb.use("picto")))
    assert list(inspect.signature(sb.bridge).parameters)[:2] == ["img_feats", "bridge"]

"""What the door is: scikit-learn's types, the same files, short views; what it says without scikit-learn."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import semobridge_ext as sb
from semobridge_ext import sklearn as door
from tests.support.assertions import assert_same_bits
from tests.support.problems import make

base = pytest.importorskip("sklearn.base")


@pytest.mark.parametrize("name", door.__all__)
def test_types(name: str):
    model = getattr(door, name)()
    kind = base.TransformerMixin if hasattr(model, "transform") else base.ClassifierMixin
    assert isinstance(model, base.BaseEstimator) and isinstance(model, kind)
    assert base.is_classifier(model) == (kind is base.ClassifierMixin)
    if name not in ("Bridge", "LinearMap"):
        assert isinstance(model, getattr(sb, name))
    assert isinstance(base.clone(model), type(model)) and repr(model).startswith(f"{name}(")
    assert model.set_params(**model.get_params()) is model


def test_what_has_sums_has_weights_and_parts():
    growing = {name for name in door.__all__ if hasattr(getattr(door, name), "partial_fit")}
    weighted = {name for name in door.__all__ if hasattr(getattr(door, name), "set_partial_fit_request")}
    assert growing == weighted == {"GDA", "LDA", "NearestClassMean", "SeMoBridgeClassifier", "TipAdapter"}
    with pytest.raises(AttributeError, match=r"APE has no partial_fit: the channels are chosen"):
        door.APE().partial_fit  # noqa: B018


def test_files_are_the_same(tmp_path: Path):
    p = make(4, 3, 20)
    path = tmp_path / "gda.safetensors"
    door.GDA(p.text).fit(p.shots, p.labels).save(path)
    plain, own = sb.GDA.load(path), door.GDA.load(path)
    assert type(plain) is sb.GDA and type(own) is door.GDA
    assert_same_bits(own.logits(p.queries), plain.logits(p.queries))
    with pytest.raises(ValueError, match=r"GDA\.partial_fit: self must hold its sums.*call fit\(X, y\)"):
        own.partial_fit(p.shots, p.labels)


SHOWN = {
    "numbers of NumPy": (lambda m: m.GDA(alpha=np.float64(3.0)), "GDA(alpha=3.0)"),
    "the default by another type": (lambda m: m.GDA(alpha=np.float32(1.0)), "GDA()"),
    "a text": (lambda m: m.GDA(torch.eye(5)), "GDA(text_features=[5, 5])"),
    "names of NumPy": (
        lambda m: m.GDA(class_names=list(np.array(["a", "b", "c", "d", "e"]))),
        "GDA(class_names=['a', 'b', 'c', … 2 more])",
    ),
    "a bridge": (
        lambda m: m.SeMoBridgeClassifier(sb.Bridge(torch.eye(2))), "SeMoBridgeClassifier(bridge=Bridge)"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SHOWN)
def test_views_are_short(case: str):
    make_model, text = SHOWN[case]
    assert repr(make_model(sb)) == repr(make_model(door)) == text
    view = make_model(door)._repr_html_()
    assert "np." not in view and "tensor" not in view


def test_names_of_numpy_are_plain_in_errors():
    p = make(2, 2, 4)
    with pytest.raises(ValueError, match=r"got none of \['b'\]"):
        sb.GDA(p.text, class_names=list(np.array(["a", "b"]))).fit(p.shots, np.array(["a"] * 4))


def test_without_scikit_learn_it_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    for name in [n for n in sys.modules if n.startswith("semobridge_ext.sklearn")]:
        monkeypatch.delitem(sys.modules, name)
    for name in [n for n in sys.modules if n.partition(".")[0] == "sklearn"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"scikit-learn must be installed.*'semobridge-ext\[sklearn\]'"):
        importlib.import_module("semobridge_ext.sklearn")


# -- named columns, with nothing of pandas ------------------------------------------------------------------


class Frame:
    """Rows with names of columns."""

    def __init__(self, rows: torch.Tensor, columns: list[str]) -> None:
        self.rows, self.columns = rows.numpy(), columns

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return self.rows if dtype is None else self.rows.astype(dtype)


@pytest.mark.parametrize("model", [sb.NearestClassMean, sb.LPPlusPlus])
def test_columns_keep_their_names(model):
    p = make(3, 4, 6, width=3)
    clf = model().fit(Frame(p.shots, ["red", "green", "blue"]), p.labels)
    assert clf.feature_names_in_.tolist() == ["red", "green", "blue"]
    assert clf.predict(Frame(p.queries, ["red", "green", "blue"])).shape == (6,)
    assert clf.predict(p.queries).shape == (6,)  # a tensor has no names to give
    turned = Frame(p.queries, ["green", "red", "blue"])
    with pytest.raises(ValueError, match=r"predict: The feature names should match.*\n.*in the same order"):
        clf.predict(turned)
    with pytest.raises(ValueError, match=r"unseen at fit time:\n- x\nFeature names seen.*missing:\n- red\n"):
        clf.score(Frame(p.queries, ["x", "green", "blue"]), p.targets)
    with pytest.warns(UserWarning, match=f"X does not have valid feature names, but {model.__name__} was"):
        clf.predict(p.queries.numpy())
    assert not hasattr(clf.fit(p.shots, p.labels), "feature_names_in_")
    with pytest.warns(UserWarning, match="was fitted without feature names"):
        clf.predict(turned)

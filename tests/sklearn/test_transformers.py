"""Bridge, LinearMap and IsoCLIP as transformers: rows, names of columns, containers, NaN, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

import semobridge_ext as sb
from semobridge_ext import sklearn as door
from tests.support.assertions import assert_row_relative
from tests.support.problems import make

sklearn = pytest.importorskip("sklearn")

ROWS = make(4, 6, 20, width=8, text_width=6)
X, Y = ROWS.shots.double(), ROWS.labels


def expectations() -> dict:
    """Name → a transformer, and its rows of X by the formula in float64."""
    w = ROWS.projection.double()
    centred = X - X.mean(dim=0)
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(X))
    loaded = values + 1e-3 * values.sum() / 8
    # Directions are known to their sign, so that Gram matrices are compared.
    return {
        "bridge": (door.Bridge(sb.Bridge(w)), normalize(X @ torch.linalg.pinv(w, atol=0.3, rtol=0.0) @ w)),
        "identity": (door.Bridge("identity"), normalize(X)),
        "no norm": (door.Bridge("identity", normalize=False), X),
        "centering": (door.LinearMap(), normalize(centred)),
        "pca": (door.LinearMap("pca", k=3), normalize(centred @ vectors[:, -3:])),
        "whitening": (door.LinearMap("whitening"), normalize(centred @ vectors / loaded.sqrt())),
        "a map": (door.LinearMap(sb.LinearMap(w.T)), normalize(X @ w.T)),
        "isoclip": (
            door.IsoCLIP(torch.eye(8, dtype=torch.float64), w @ w.T @ torch.eye(6, 8, dtype=torch.float64),
                         k_top=0, k_bottom=0), None,
        ),
    }  # fmt: skip


CASES = expectations()


@pytest.mark.parametrize("name", [n for n in CASES if n != "isoclip"])
def test_rows(name: str):
    model, want = CASES[name]
    got = sklearn.base.clone(model).fit(X, Y).transform(X)
    assert_row_relative(got @ got.T, want @ want.T, "whitened" if name == "whitening" else "linear_map")
    arrays = sklearn.base.clone(model).fit_transform(X.numpy(), Y.numpy())
    assert isinstance(arrays, np.ndarray) and np.array_equal(arrays, got.numpy())


@pytest.mark.parametrize("name", CASES)
def test_containers_and_names(name: str):
    pandas = pytest.importorskip("pandas")
    model = sklearn.base.clone(CASES[name][0]).set_output(transform="pandas")
    frame = pandas.DataFrame(X.numpy(), columns=[f"c{i}" for i in range(8)])
    found = model.fit(frame, Y).transform(frame)
    names = [f"{type(model).__name__.lower()}{i}" for i in range(found.shape[1])]
    assert isinstance(found, pandas.DataFrame) and list(found.columns) == names
    assert model.get_feature_names_out().tolist() == names
    assert model.feature_names_in_.tolist() == list(frame.columns) and model.n_features_in_ == 8
    model.set_output(transform="default")
    assert np.array_equal(model.transform(frame), found.to_numpy())
    with pytest.raises(ValueError, match=r"transform: The feature names should match"):
        model.transform(frame[frame.columns[::-1]])


@pytest.mark.parametrize("name", [n for n in CASES if n != "isoclip"])
def test_nan_stays_in_its_row(name: str):
    """At fit the row takes no part, at transform it spoils itself alone."""
    spoilt = torch.cat([X, torch.full((1, 8), float("nan"), dtype=torch.float64)])
    model = sklearn.base.clone(CASES[name][0])
    whole = model.fit(X, Y).transform(X)
    found = model.fit(spoilt, [*Y.tolist(), 0]).transform(spoilt)
    assert torch.equal(found[:-1], whole) and bool(found[-1].isnan().all())
    assert sklearn.utils.get_tags(model).input_tags.allow_nan


def test_isoclip_in_a_search():
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline

    pipeline = make_pipeline(sklearn.base.clone(CASES["isoclip"][0]), door.NearestClassMean())
    search = GridSearchCV(pipeline, {"isoclip__k_top": [0, 2]}, cv=2, error_score="raise")
    assert search.fit(X.numpy(), Y.numpy()).score(ROWS.queries.double().numpy(), ROWS.targets) > 0.5
    assert isinstance(pipeline[0], sb.IsoCLIP) and sklearn.utils.get_tags(pipeline[0]).transformer_tags


BAD = {
    "another bridge": (door.Bridge("big"), TypeError, r"Bridge\.fit: bridge must be a Bridge, a CLIP model"),
    "another width": (
        door.Bridge(sb.Bridge(torch.eye(3))), ValueError, r"Bridge\.fit: X must have the map.s width 3",
    ),
    "another name": (door.LinearMap("lda"), ValueError, r"LinearMap\.fit: linear_map must be a LinearMap or"),
    "too many directions": (door.LinearMap("pca", k=9), ValueError, r"k must be an int in 1\.\.8"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_refusals(case: str):
    model, kind, told = BAD[case]
    with pytest.raises(kind, match=told):
        model.fit(X)
    with pytest.raises(ValueError, match="must be fitted first"):
        model.transform(X)


def test_one_row_has_no_directions():
    with pytest.raises(ValueError, match=r"X must have at least 2 finite rows, got 1 sample; pass more rows"):
        door.LinearMap("pca").fit(X[:1])

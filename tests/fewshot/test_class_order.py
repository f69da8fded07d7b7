"""Columns follow the sorted ``classes_``, in whatever order the names and rows of text are given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import semobridge_ext as sb
from tests.support.assertions import assert_figures, assert_same_bits
from tests.support.checksums import save_resealed
from tests.support.problems import Problem, make

sklearn = pytest.importorskip("sklearn", reason="scikit-learn is not installed; pip install scikit-learn")

GIVEN = ["zebra", "ant", "mole", "bee"]
ORDER = [1, 3, 2, 0]  # of the sorted names among the given ones


def trained(p: Problem, text: torch.Tensor, hidden: torch.Tensor, names: list[str]) -> sb.SeMoBridgeT:
    return sb.SeMoBridgeT(p.bridge(), text, hidden, class_names=names, steps=4, warmup=1)


MODELS: dict[str, Callable] = {
    "SeMoBridgeClassifier": lambda p, text, _, names: sb.SeMoBridgeClassifier(
        p.bridge(), text, class_names=names
    ),
    "SeMoBridgeT": trained,
    "TipAdapter": lambda p, text, _, names: sb.TipAdapter(text, class_names=names),
    "TipAdapterF": lambda p, text, _, names: sb.TipAdapterF(text, class_names=names, epochs=1),
    "APE": lambda p, text, _, names: sb.APE(text, class_names=names),
    "GDA": lambda p, text, _, names: sb.GDA(text, class_names=names),
    "ProKeR": lambda p, text, _, names: sb.ProKeR(text, class_names=names),
    "LPPlusPlus": lambda p, text, _, names: sb.LPPlusPlus(text, class_names=names, steps=4),
    "ProLIP": lambda p, text, _, names: sb.ProLIP(torch.eye(24), text, class_names=names, steps=4, lr=1e-3),
    "ZeroShot": lambda p, text, _, names: sb.ZeroShot(text, class_names=names),
}


def problem() -> tuple[Problem, list[str], list[str]]:
    p = make(4, 6)
    return p, [GIVEN[i] for i in p.labels.tolist()], [GIVEN[i] for i in p.targets.tolist()]


def proba_by_name(clf, queries: torch.Tensor) -> dict[str, np.ndarray]:
    proba = clf.predict_proba(queries).double().numpy()
    return dict(zip(clf.classes_.tolist(), (proba / proba.sum(1, keepdims=True)).T, strict=True))


@pytest.mark.parametrize("model", MODELS)
def test_scores_of_scikit_learn(model: str):
    from sklearn.metrics import log_loss, roc_auc_score

    p, y, targets = problem()
    clf = MODELS[model](p, p.text, p.hidden, GIVEN).fit(p.shots, y)
    assert clf.classes_.tolist() == sorted(GIVEN) and clf.class_names == GIVEN
    by_name = proba_by_name(clf, p.queries)
    own = np.array([by_name[name][i] for i, name in enumerate(targets)])
    proba = np.stack([by_name[name] for name in clf.classes_], axis=1)
    found = log_loss(targets, proba, labels=clf.classes_)
    assert_figures(found, -np.log(own).mean(), "metric", dtype=torch.float32, scale=1.0)
    areas = [roc_auc_score(np.array(targets) == name, by_name[name]) for name in sorted(GIVEN)]
    found = roc_auc_score(targets, proba, multi_class="ovr", labels=clf.classes_)
    assert found == pytest.approx(np.mean(areas)) and found > 0.6
    # Rows of text given in sorted order, the same classifier.
    twin = MODELS[model](p, p.text[ORDER], p.hidden[ORDER], sorted(GIVEN)).fit(p.shots, y)
    assert_same_bits(clf.logits(p.queries), twin.logits(p.queries))
    assert clf.predict(p.queries).tolist() == twin.predict(p.queries).tolist()
    assert clf.score(p.queries, targets) == twin.score(p.queries, targets) > 0.5


def test_two_classes_out_of_order():
    text = torch.eye(2)
    clf = sb.ZeroShot(text, class_names=["dog", "cat"]).fit()
    assert clf.decision_function(torch.tensor([[3.0, 0.1]]))[0] > 0  # dog stands second
    assert clf.predict(torch.tensor([[3.0, 0.1]])).tolist() == ["dog"]


@pytest.mark.parametrize("model", ["SeMoBridgeClassifier", "SeMoBridgeT"])
def test_a_class_added_in_between(model: str):
    p, y, targets = problem()
    few = [i for i, name in enumerate(y) if name != "mole"]
    more = [i for i, name in enumerate(y) if name == "mole"]
    names = [name for name in GIVEN if name != "mole"]
    rows = [GIVEN.index(name) for name in names]
    clf = MODELS[model](p, p.text[rows], p.hidden[rows], names).fit(p.shots[few], [y[i] for i in few])
    before = dict(zip(clf.classes_.tolist(), clf.logits(p.queries).T, strict=True))
    clf.add_classes(["mole"], p.text[[2]], p.shots[more], [y[i] for i in more])
    assert clf.classes_.tolist() == sorted(GIVEN)
    after = dict(zip(clf.classes_.tolist(), clf.logits(p.queries).T, strict=True))
    for name in names:
        assert_same_bits(after[name], before[name])
    assert clf.score(p.queries, targets) > 0.5


@pytest.mark.parametrize(
    "names",
    [
        [3, 2**63 + 1, 2**63 + 3, 5],
        [2**63, 2**63 + 1, 2**64 - 1, 2**63 + 3],
        [-1, 2**63 + 1, 0, 1],
        [2**70, 1, 2, 3],
    ],
)
def test_numbers_of_any_size_keep_their_digits(names: list[int], tmp_path: Path):
    """As float64 2⁶³ + 1 would be 2⁶³; PyTorch knows no row numbers of uint64."""
    p, _, _ = problem()
    y, targets = ([names[i] for i in part.tolist()] for part in (p.labels, p.targets))
    clf = sb.GDA(p.text, class_names=names).fit(p.shots, y)
    clf.save(tmp_path / "gda")
    for which in (clf, sb.GDA.load(tmp_path / "gda")):
        assert which.classes_.tolist() == sorted(names)
        for found in (which.predict(p.queries), which.predict(p.queries.numpy())):
            assert {type(name) for name in found.tolist()} == {int} and set(found.tolist()) <= set(names)
        assert which.score(p.queries, targets) > 0.5


@pytest.mark.parametrize("model", MODELS)
def test_files_of_unsorted_classes_still_load(model: str, tmp_path: Path):
    """0.1.0 wrote the classes as they were given."""
    p, y, _ = problem()
    clf = MODELS[model](p, p.text, p.hidden, GIVEN).fit(p.shots, y)
    clf.save(tmp_path / "new")
    tensors = load_file(tmp_path / "new")
    with safe_open(tmp_path / "new", "pt") as file:
        meta = dict(file.metadata())
    back = torch.argsort(torch.tensor(ORDER))
    by_class = ("text", "raw_sums", "bridged_sums", "counts", "tau", "_text_rows", "coef_", "intercept_")
    for name in (*by_class, "alpha_", "duals_"):
        if name in tensors:
            tensors[name] = tensors[name][back].contiguous()
    if "labels_" in tensors:
        tensors["labels_"] = torch.tensor(ORDER)[tensors["labels_"]]
    listed = str(sorted(GIVEN)).replace("'", '"')
    assert listed in meta["fields"]
    meta["fields"] = meta["fields"].replace(listed, str(GIVEN).replace("'", '"'))
    save_resealed(tensors, tmp_path / "old", meta)
    for path in ("new", "old"):
        loaded = type(clf).load(tmp_path / path)
        assert loaded.classes_.tolist() == sorted(GIVEN)
        assert_same_bits(loaded.logits(p.queries), clf.logits(p.queries))

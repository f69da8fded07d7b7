"""Ensembles, searches, calibration and routing of scikit-learn around the estimators of the door."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

import semobridge_ext as sb
from tests.support.problems import make

sklearn = pytest.importorskip("sklearn")
from semobridge_ext import sklearn as door  # noqa: E402

NAMES = np.array(["ant", "bee", "cow", "dog"])


class Data:
    """Four classes with names, 10 shots each, in arrays."""

    def __init__(self) -> None:
        p = make(4, 10, 60, noise=1.2)
        self.x, self.queries, self.text = p.shots.numpy(), p.queries.numpy(), p.text
        self.y, self.targets = NAMES[p.labels.numpy()], NAMES[p.targets.numpy()]
        self.names = NAMES.tolist()


DATA = Data()


def members() -> list[tuple[str, object]]:
    return [
        ("text", door.ZeroShot(DATA.text, class_names=DATA.names)),
        ("gda", door.GDA(DATA.text, class_names=DATA.names, alpha=3.0)),
        ("tip", door.TipAdapter(DATA.text, class_names=DATA.names)),
        ("blend", door.SeMoBridgeClassifier("identity", DATA.text, class_names=DATA.names)),
        ("mean", door.NearestClassMean()),
    ]


def votes() -> np.ndarray:  # [members, N] names, from each member fitted alone
    return np.stack([model.fit(DATA.x, DATA.y).predict(DATA.queries) for _, model in members()])


def test_voting_counts_the_members_votes():
    """The ensemble hands numbers of classes to its members, whose class_names are words."""
    from sklearn.ensemble import VotingClassifier

    found = VotingClassifier(members()).fit(DATA.x, DATA.y).predict(DATA.queries)
    counts = np.stack([(votes() == name).sum(axis=0) for name in NAMES], axis=1)
    assert found.tolist() == NAMES[counts.argmax(axis=1)].tolist() and len(set(found)) == 4


def test_soft_voting_averages_probabilities():
    from sklearn.ensemble import VotingClassifier

    found = VotingClassifier(members(), voting="soft").fit(DATA.x, DATA.y)
    alone = [model.fit(DATA.x, DATA.y).predict_proba(DATA.queries) for _, model in members()]
    want = np.mean(np.stack(alone).astype(np.float64), axis=0)
    assert found.predict(DATA.queries).tolist() == NAMES[want.argmax(axis=1)].tolist()


def test_stacking():
    from sklearn.ensemble import StackingClassifier
    from sklearn.linear_model import LogisticRegression

    stack = StackingClassifier(members(), LogisticRegression(max_iter=1000), cv=2).fit(DATA.x, DATA.y)
    assert stack.classes_.tolist() == DATA.names and stack.score(DATA.queries, DATA.targets) > 0.6


@pytest.mark.parametrize("ensemble", [True, False])
def test_calibration(ensemble: bool):
    from sklearn.calibration import CalibratedClassifierCV

    clf = CalibratedClassifierCV(members()[1][1], cv=2, ensemble=ensemble).fit(DATA.x, DATA.y)
    proba = clf.predict_proba(DATA.queries)
    assert proba.shape == (60, 4) and clf.score(DATA.queries, DATA.targets) > 0.6


def test_numbers_stand_for_sorted_names():
    """Numbers are the classes then, and only where they cannot mean another order."""
    codes = np.searchsorted(NAMES, DATA.y)
    clf = door.GDA(DATA.text, class_names=DATA.names).fit(DATA.x, codes)
    plain = door.GDA(DATA.text, class_names=DATA.names).fit(DATA.x, DATA.y)
    assert clf.classes_.tolist() == [0, 1, 2, 3]
    assert NAMES[clf.predict(DATA.queries)].tolist() == plain.predict(DATA.queries).tolist()
    turned = door.GDA(DATA.text.flip(0), class_names=DATA.names[::-1])
    with pytest.raises(ValueError, match=r"GDA\.fit: y must hold names of the classes.*sort class_names"):
        turned.fit(DATA.x, codes)
    assert turned.fit(DATA.x, DATA.y).predict(DATA.queries).tolist() == plain.predict(DATA.queries).tolist()


def test_a_fold_without_a_class_says_so():
    from sklearn.model_selection import cross_val_score

    kept = (DATA.y != "dog") | (np.cumsum(DATA.y == "dog") == 1)
    clf = door.GDA(DATA.text, class_names=DATA.names)
    folds = [(np.flatnonzero(kept & (DATA.y != "dog")), np.arange(4))]
    with pytest.raises(ValueError, match=r"got none of \['dog'\]; leave.*keep a shot of each in every fold"):
        cross_val_score(clf, DATA.x, DATA.y, cv=folds, error_score="raise")
    folds = [(folds[0][0], np.flatnonzero(kept))]
    with pytest.raises(
        ValueError, match=r"GDA\.score: y must hold names of the classes .*, got 'dog'.*fit with a shot of it"
    ):
        cross_val_score(door.GDA(), DATA.x, DATA.y, cv=folds, error_score="raise")
    scores = cross_val_score(clf, DATA.x, DATA.y, cv=3, error_score="raise")
    assert len(scores) == 3 and scores.min() > 0.4


def test_search_in_a_pipeline():
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline

    pipeline = make_pipeline(door.LinearMap("centering"), door.GDA())
    grid = {"gda__alpha": np.array([1.0, 10.0]), "linearmap__linear_map": ["centering", "whitening"]}
    search = GridSearchCV(pipeline, grid, cv=2, error_score="raise").fit(DATA.x, DATA.y)
    assert search.score(DATA.queries, DATA.targets) > 0.4
    assert "np." not in repr(search.best_estimator_) and len(search._repr_html_()) < 200_000


def test_weights_are_routed():
    from sklearn.ensemble import VotingClassifier
    from sklearn.model_selection import cross_validate
    from sklearn.pipeline import make_pipeline

    weights = np.where(DATA.y == "ant", 3.0, 1.0)
    with sklearn.config_context(enable_metadata_routing=True):
        mean = door.NearestClassMean().set_fit_request(sample_weight=True)
        pipeline = make_pipeline(door.Bridge("identity"), mean.set_score_request(sample_weight=True))
        pipeline.fit(DATA.x, DATA.y, sample_weight=weights)
        found = cross_validate(pipeline, DATA.x, DATA.y, cv=2, params={"sample_weight": weights})
    assert len(found["test_score"]) == 2
    unit = normalize(torch.from_numpy(DATA.x).double(), dim=1).numpy()
    direct = sb.NearestClassMean().fit(unit, DATA.y, sample_weight=weights)
    assert pipeline.predict(DATA.queries).tolist() == direct.predict(DATA.queries).tolist()
    two = [("gda", door.GDA()), ("lda", door.LDA())]
    assert VotingClassifier(two).fit(DATA.x, DATA.y, sample_weight=weights).score(DATA.x, DATA.y) > 0.5

"""IsoCLIP before a nearest class mean, in scikit-learn's pipelines and searches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import semobridge_ext as sb
from tests.support.assertions import (
    assert_close,
    assert_row_relative,
)
from tests.support.isoclip import V, paper, problem


@pytest.mark.parametrize("compress", [False, True])
def test_class_means(matrices, compress: bool):
    a, w = matrices
    x, y = problem(a, w, 2)
    iso = sb.IsoCLIP(a, w, k_top=2, k_bottom=1, compress=compress)
    means, classes = iso.class_means(x, y)
    want = paper(torch.stack([x[y == c].double().mean(0) for c in range(6)]), a, w, 2, 1, "image")
    assert classes.tolist() == list(range(6))
    if compress:
        f = paper(x, a, w, 2, 1, "image")
        assert_row_relative(iso.image(x) @ means.T, f @ want.T, "linear_map", context="cosines")
    else:
        assert_row_relative(means, want, "linear_map", context="prototypes")


def test_pipeline_is_the_nearest_class_mean_of_the_paper(matrices):
    pipeline = pytest.importorskip("sklearn.pipeline", reason="scikit-learn is not installed")
    a, w = matrices
    x, y = problem(a, w, 2)
    iso = sb.IsoCLIP(a, w, k_top=2, k_bottom=1, compress=True, normalize=False)
    fitted = pipeline.make_pipeline(iso, sb.NearestClassMean()).fit(x[:30].numpy(), y[:30].numpy())
    means, classes = iso.class_means(x[:30], y[:30])
    direct = sb.IsoCLIP(a, w, k_top=2, k_bottom=1, compress=True).image(x[30:]) @ means.T
    assert np.array_equal(fitted.predict(x[30:].numpy()), classes[direct.argmax(1).numpy()])
    assert fitted.score(x[30:].numpy(), y[30:].numpy()) > 0.5


def _gram(x: Tensor, a: Tensor, w: Tensor, top: int, bottom: int) -> Tensor:
    f = paper(x, a, w, top, bottom, "image")
    return f @ f.T


def test_scikit_learn_conventions(matrices):
    base = pytest.importorskip("sklearn.base", reason="scikit-learn is not installed")
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.utils.validation import check_is_fitted

    a, w = matrices
    x, y = problem(a, w, 3)
    iso = sb.IsoCLIP(a, w, k_top=1, k_bottom=2)
    twin = base.clone(iso)
    assert twin is not iso and torch.equal(twin.image_projection, a)
    assert twin.get_params().keys() == iso.get_params().keys() and twin.k_top == 1
    twin.set_params(k_top=4, compress=True)
    assert_close(twin.image(x) @ twin.image(x).T, _gram(x, a, w, 4, 2), "op")
    with pytest.raises(ValueError, match="Invalid parameter 'k' for estimator IsoCLIP"):
        twin.set_params(k=3)
    check_is_fitted(iso)
    got = iso.fit_transform(x.numpy())
    assert isinstance(got, np.ndarray) and iso.n_features_in_ == V
    assert np.array_equal(got, iso.transform(x).numpy())
    chosen = sb.IsoCLIP(a, w).fit(x, y)
    assert chosen.k_top_ >= 3 and chosen.k_top is None
    assert_close(chosen.transform(x), paper(x, a, w, chosen.k_top_, chosen.k_bottom_, "image"), "op")
    assert "k_top" in repr(iso) and "[20, 12]" in repr(iso)
    search = GridSearchCV(
        make_pipeline(iso, sb.NearestClassMean()), {"isoclip__k_top": [0, 3]}, cv=3, error_score="raise"
    ).fit(x.numpy(), y.numpy())
    assert search.best_params_["isoclip__k_top"] == 3

"""The search of the cache models' α, β and γ, against a plain evaluation of every value."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch.nn.functional import normalize

import semobridge_ext as sb
from semobridge_ext.fewshot import published
from semobridge_ext.fewshot.cache_search import alpha_bounds
from tests.support.problems import Problem, make
from tests.support.vectors import rows, vector


def accuracies(
    p: Problem, labels: torch.Tensor, betas: tuple, alphas: tuple, gammas: tuple, channels: int
) -> list[int]:
    """Right rows for every value in the order β, α, γ; with all channels and γ = 0 it is Tip-Adapter."""
    q, text, keys = (normalize(v.double(), dim=1) for v in (p.queries, p.text, p.shots))
    kept = torch.arange(q.shape[1])
    if channels < len(kept):
        clf = sb.APE(p.text, channels=channels).fit(p.shots, labels)
        kept = clf.channels_
    small, few, own = (normalize(v[:, kept], dim=1) for v in (q, keys, text))
    shot_logits = torch.softmax(few @ own.T, dim=1)
    found = []
    for beta, alpha, gamma in product(betas, alphas, gammas):
        logits = 100 * q @ text.T
        terms = torch.exp(-beta * (1 - small @ few.T))
        for s, label in enumerate(labels.tolist()):
            weight = torch.exp(gamma * torch.log2((1 + 1e-6) / (shot_logits[s, label] + 1e-6)))
            logits[:, label] += alpha * weight * terms[:, s]
        found.append(int((logits.argmax(dim=1) == p.targets).sum()))
    return found


def coarse(clf: sb.TipAdapter) -> tuple[tuple, tuple, tuple]:
    """The class's own grid, thinned."""
    clf.BETAS, clf.ALPHAS = clf.BETAS[2::6], clf.ALPHAS[3::4]
    if isinstance(clf, sb.APE):
        clf.GAMMAS = clf.GAMMAS[::3]
        return clf.BETAS, clf.ALPHAS, clf.GAMMAS
    return clf.BETAS, clf.ALPHAS, (0.0,)


@pytest.mark.parametrize("backend", ["native", "eager"])
@pytest.mark.parametrize("shots", [2, [1, 3, 2, 1, 2, 3, 1, 2]], ids=["even", "uneven"])
@pytest.mark.parametrize("model", [sb.TipAdapter, sb.APE])
def test_tune_finds_the_first_best_of_its_grid(model, shots, backend):
    p = make(8, shots, 90, noise=2.8)
    clf = model(p.text, alpha=1e-6).fit(p.shots, p.labels)
    start = int((clf.predict(p.queries) == p.targets).sum())
    grid = coarse(clf)
    want = accuracies(p, p.labels, *grid, 12 if model is sb.APE else 24)
    best = max(want)
    assert best > start and len(set(want)) > 3
    beta, alpha, gamma = list(product(*grid))[want.index(best)]
    with sb.backend(backend):
        clf.tune(p.queries, p.targets)
    assert (clf.beta_, clf.alpha_) == (beta, alpha)
    assert model is sb.TipAdapter or clf.gamma_ == gamma
    assert int((clf.predict(p.queries) == p.targets).sum()) == best


def test_the_present_values_stay_unless_others_are_better():
    p = make(3, 2, 30, noise=0.01)
    clf = sb.APE(p.text, alpha=2.0, beta=3.0, gamma=0.3).fit(p.shots, p.labels)
    assert clf.score(p.queries, p.targets) == 1
    clf.tune(p.queries, p.targets)
    assert (clf.alpha_, clf.beta_, clf.gamma_) == (2.0, 3.0, 0.3)


def test_rows_are_searched_in_blocks(monkeypatch):
    p = make(8, 2, 90, noise=1.8)
    whole = sb.APE(p.text).fit(p.shots, p.labels)
    grid = coarse(whole)
    whole.tune(p.queries, p.targets)
    monkeypatch.setattr("semobridge_ext.fewshot.caches.CHUNK", 7)
    cut = sb.APE(p.text).fit(p.shots, p.labels)
    assert coarse(cut) == grid
    cut.tune(p.queries, p.targets)
    assert (cut.alpha_, cut.beta_, cut.gamma_) == (whole.alpha_, whole.beta_, whole.gamma_)


@pytest.mark.parametrize("model", [sb.TipAdapter, sb.APE])
def test_picks_do_not_end_where_the_grid_ends(model):
    """Texts that say nothing beside shots that say much: the cache must outweigh 100 times a cosine."""
    p = make(12, 4, 240, noise=1.0)
    noise = torch.randn(12, 24, generator=torch.Generator().manual_seed(8))
    clf = model(noise).fit(p.shots, p.labels).tune(p.queries, p.targets)
    assert clf.ALPHAS[0] < clf.alpha_ < clf.ALPHAS[-1] and clf.beta_ < clf.BETAS[-1]
    assert clf.score(p.queries, p.targets) > sb.ZeroShot(noise).fit().score(p.queries, p.targets) + 0.6


def test_trained_keys_longer_than_one_lose_the_sharpest_values():
    p = make(5, 3, 40)
    clf = sb.TipAdapterF(p.text, epochs=0).fit(p.shots, p.labels)
    clf.keys_ = clf.keys_ * 2
    clf.tune(p.queries, p.targets)
    assert clf.beta_ < 60 and torch.isfinite(clf.logits(p.queries)).all()


# -- the bounds of α -----------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.01, 0.5, 3.0, 700.0])
def test_bounds_are_those_of_every_value(alpha):
    g = torch.Generator().manual_seed(3)
    text, cache = torch.randn(400, 6, generator=g), torch.rand(400, 6, generator=g)
    cache[::3, 2:] = cache[::3, :1]  # the cache leaves these to the text
    text[::6, 4:] = text[::6, :1]  # and here nothing decides: the lower class does
    codes = torch.arange(400) % 6
    low, high = alpha_bounds(text, cache, codes)
    right = (text.double() + alpha * cache.double()).argmax(dim=1) == codes
    assert torch.equal((low < alpha) & (alpha < high), right) and 0 < int(right.sum()) < 400


# -- the authors' grids --------------------------------------------------------------------------------


def test_the_authors_grid():
    told = vector("tip_adapter")
    given, want = told["inputs"], told["outputs"]
    shots = rows(given["shots"]).flatten(0, 1)
    labels = torch.arange(3).repeat_interleave(2)
    clf = sb.TipAdapter(rows(given["text"])).fit(shots, labels)
    clf.tune(rows(given["queries"]), torch.tensor(given["query_labels"]), grid="imagenet")
    assert (clf.beta_, clf.alpha_) == (want["grid_best_beta"], want["grid_best_alpha"])


def test_the_authors_grid_holds_their_values():
    grid = published.grid_of("TipAdapter.tune", "Caltech101", published.TIP_ADAPTER, False)
    assert len(grid.betas) == 200 and len(grid.alphas) == 20 and not grid.gammas
    assert grid.betas[0] == grid.alphas[0] == 0.1
    assert grid.betas[199] == 0.1 + 199 * 11.9 / 200 and grid.alphas[19] == 0.1 + 19 * 4.9 / 20
    assert grid == published.grid_of("TipAdapter.tune", (12, 5), published.TIP_ADAPTER, False)
    ape = published.grid_of("APE.tune", "imagenet", published.APE, True)
    assert [len(v) for v in ape] == [200, 20, 5] and ape.gammas[0] == 0 and ape.gammas[4] == 0.4
    assert len(published.grid_of("APE.tune", (7, 7, 1), published.APE, True).gammas) == 20
    tables = (published.TIP_ADAPTER, published.APE, published.APE_CHANNELS, published.APET_CHANNELS)
    assert len({tuple(sorted(table)) for table in tables}) == 1 and len(published.APE) == 11


def test_the_authors_grid_keeps_its_first_best():
    """Not the values before the search, which are as good."""
    p = make(3, 2, 30, noise=0.01)
    clf = sb.TipAdapter(p.text, alpha=2.0, beta=3.0).fit(p.shots, p.labels)
    clf.tune(p.queries, p.targets, grid=(7, 3))
    assert (clf.alpha_, clf.beta_) == (0.1, 0.1)


@pytest.mark.parametrize("grid", ["imagenet21k", (7,), (7, 3, 1), (0.05, 3), (float("nan"), 3), 7, (None, 2)])
def test_other_grids_are_refused(grid):
    p = make(3, 2, 5)
    clf = sb.TipAdapter(p.text).fit(p.shots, p.labels)
    with pytest.raises(ValueError, match=r"TipAdapter\.tune: grid must (name one of|be a data set's name)"):
        clf.tune(p.queries, p.targets, grid=grid)
    with pytest.raises(ValueError, match=r"APE\.tune: grid must"):
        sb.APE(p.text).fit(p.shots, p.labels).tune(p.queries, p.targets, grid=(7, 3))

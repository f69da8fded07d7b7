"""ProKeR against a dense solve in float64."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch.nn.functional import normalize

import semobridge_ext as sb
from semobridge_ext.fewshot import proker
from semobridge_ext.fewshot.reference import proker_duals
from tests.support.assertions import assert_close
from tests.support.checksums import save_resealed
from tests.support.problems import Problem, make


def proker_logits(p: Problem, beta: float, ridge: float) -> torch.Tensor:
    x, q, t = (normalize(rows.double(), dim=1) for rows in (p.shots, p.queries, p.text))
    return 100 * (q @ t.T + torch.exp(-beta * (1 - q @ x.T)) @ proker_duals(x, p.labels, t, beta, ridge))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shots,width", [(6, 10), ([1, 2, 3, 1, 2], 24), (1, 40)])
def test_formula(dtype, shots, width):
    p = make(5, shots, 30, width=width, dtype=dtype)
    clf = sb.ProKeR(p.text, beta=2.0, ridge=0.05).fit(p.shots, p.labels)
    got = clf.logits(p.queries)
    assert got.dtype is (torch.float64 if dtype is torch.float64 else torch.float32)
    # A shot that is float16 has its unit row in float32: the duals are those of rounded keys.
    assert_close(got, proker_logits(p, 2.0, 0.05), "proker")
    assert float((got - sb.ZeroShot(p.text).fit().logits(p.queries)).abs().max()) > 1e-2


def test_blocks_do_not_show(monkeypatch):
    p = make(4, 5, 33, dtype=torch.float64)
    monkeypatch.setattr(proker, "_BLOCK", 100)
    clf = sb.ProKeR(p.text, beta=1.5, ridge=0.3).fit(p.shots, p.labels)
    assert_close(clf.logits(p.queries), proker_logits(p, 1.5, 0.3), "proker")
    found = [(m.beta_, m.ridge_) for m in [clf.tune(p.queries, p.targets)]]
    monkeypatch.setattr(proker, "_BLOCK", 1 << 23)
    clf.tune(p.queries, p.targets)
    assert found == [(clf.beta_, clf.ridge_)]


@pytest.mark.parametrize("seed", range(3))
def test_tune_picks_what_a_solve_per_pair_picks(seed):
    p = make(12, 3, 150, noise=1.8, seed=seed, dtype=torch.float64)
    grid = [(beta, ridge) for beta in sb.ProKeR.BETAS for ridge in sb.ProKeR.LAMBDAS]
    scores = [int((proker_logits(p, *pair).argmax(dim=1) == p.targets).sum()) for pair in grid]
    clf = sb.ProKeR(p.text).fit(p.shots, p.labels).tune(p.queries, p.targets)
    assert len(set(scores)) > 3 and (clf.beta_, clf.ridge_) == grid[scores.index(max(scores))]
    assert clf.score(p.queries, p.targets) == max(scores) / 150
    fresh = sb.ProKeR(p.text, beta=clf.beta_, ridge=clf.ridge_).fit(p.shots, p.labels)
    assert torch.equal(fresh.logits(p.queries), clf.logits(p.queries))


def test_the_grid_is_the_published_range():
    assert (min(sb.ProKeR.BETAS), max(sb.ProKeR.BETAS)) == (0.5, 3.0)
    assert (min(sb.ProKeR.LAMBDAS), max(sb.ProKeR.LAMBDAS)) == (0.001, 1.0)


def test_refusals(monkeypatch):
    p = make(5, 2, 20)
    with pytest.raises(ValueError, match=r"ProKeR.fit: beta must be ≥ 0, got float -1.0; tune"):
        sb.ProKeR(p.text, beta=-1.0).fit(p.shots, p.labels)
    with pytest.raises(ValueError, match=r"ProKeR.fit: ridge must be > 0, got float 0.0; tune"):
        sb.ProKeR(p.text, ridge=0.0).fit(p.shots, p.labels)
    with pytest.raises(ValueError, match="ridge must outweigh the rounding"):
        sb.ProKeR(p.text, ridge=1e-30).fit(p.shots.repeat(8, 1), p.labels.repeat(8))
    with pytest.raises(ValueError, match="must be finite, got NaN or inf in 1 of 10 rows"):
        sb.ProKeR(p.text).fit(torch.where(torch.arange(10).unsqueeze(1) == 3, torch.nan, p.shots), p.labels)
    monkeypatch.setattr(sb.ProKeR, "ROWS", 9)
    with pytest.raises(
        NotImplementedError, match=r"X must have at most 9 rows.*; draw fewer shots, or use GDA"
    ):
        sb.ProKeR(p.text).fit(p.shots, p.labels)


def test_a_file_whose_keys_are_no_unit_rows(tmp_path):
    p = make(5, 2, 20)
    clf = sb.ProKeR(p.text).fit(p.shots, p.labels)
    clf.save(tmp_path / "c")
    again = sb.ProKeR.load(tmp_path / "c").tune(p.queries, p.targets)
    clf.tune(p.queries, p.targets)
    assert (again.beta_, again.ridge_) == (clf.beta_, clf.ridge_)
    tensors = load_file(tmp_path / "c")
    tensors["keys_"][3] *= 1e30
    with safe_open(tmp_path / "c", "pt") as file:
        save_resealed(tensors, tmp_path / "c", dict(file.metadata()))
    with pytest.raises(
        ValueError, match=r"ProKeR.load: .* keys_ must hold unit rows, got a length of 1e\+30"
    ):
        sb.ProKeR.load(tmp_path / "c")

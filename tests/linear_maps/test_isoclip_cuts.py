"""Choosing IsoCLIP's cuts: tune against an exhaustive search, and published cuts of the right weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import semobridge_ext as sb
from semobridge_ext.clip.affine import Affine
from semobridge_ext.linear_maps.spectrum import weights_name
from tests.support.assertions import (
    assert_close,
    assert_figures,
)
from tests.support.isoclip import F64, WIDTH, T, V, paper, problem


def mean_average_precision(f: Tensor, y: Tensor, shift: float) -> float:
    """Of rows among themselves, the cosines of a row with its own class shifted."""
    same = y[:, None] == y[None]
    cosines = f @ f.T + shift * same
    cosines.fill_diagonal_(-torch.inf)
    hits = same.gather(1, cosines.argsort(dim=1, descending=True))[:, :-1].double()
    precision = hits.cumsum(dim=1) / torch.arange(1, len(f), dtype=F64)
    return float(((precision * hits).sum(dim=1) / hits.sum(dim=1)).mean())


def test_tune_finds_what_an_exhaustive_search_finds(matrices):
    a, w = matrices
    x, y = problem(a, w, 3)
    iso = sb.IsoCLIP(a, w)
    assert iso.tune(x, y, k_top=range(6), k_bottom=range(4)) is iso
    table = {}
    for top in range(6):
        for bottom in range(4):
            f = paper(x, a, w, top, bottom, "image")
            table[top, bottom] = sb.reference.retrieval_metrics(f, f, y, y, same_set=True)[:, 0].mean().item()
    assert len(iso.search_) == len(table)
    for top, bottom, score in iso.search_:
        # The ranks are those of float32 cosines, where near ones may change places: the figure lies between
        # those of a class that is nearer and farther by more than their rounding.
        f = paper(x, a, w, top, bottom, "image")
        low, high = (mean_average_precision(f, y, shift) for shift in (-2e-6, 2e-6))
        nearest = min(max(score, low), high)
        assert_figures(score, nearest, "metric", dtype=torch.float32, scale=1.0, context=f"{top}, {bottom}")
        assert_figures(table[top, bottom], min(max(table[top, bottom], low), high), "metric", scale=1.0)
    scores = {(top, bottom): score for top, bottom, score in iso.search_}
    assert scores[iso.k_top, iso.k_bottom] == max(scores.values())
    assert iso.k_top >= 3 and table[iso.k_top, iso.k_bottom] > table[0, 0] + 0.1
    names = [f"class {i}" for i in y.tolist()]
    other = sb.IsoCLIP(a, w).tune(x, names, metric="Recall@5")
    shares = (0, 1, 2, 4, 5, 6)  # eleven of 12 directions, from none to half of them, rounded
    grid = {(top, bottom) for top in shares for bottom in shares if top + bottom < WIDTH}
    assert {(top, bottom) for top, bottom, _ in other.search_} == grid
    recall = {}
    for cut in ((0, 0), (other.k_top, other.k_bottom)):
        f = paper(x, a, w, *cut, "image")
        recall[cut] = sb.reference.retrieval_metrics(f, f, y, y, same_set=True)[:, 4].mean().item()
    # Not that three are cut: with one noisy direction left the recall is full on some draws, and the smaller
    # cut of equals is taken.
    best = max(score for _, _, score in other.search_)
    assert_figures(recall[other.k_top, other.k_bottom], best, "metric", dtype=torch.float32, scale=1.0)
    assert best > recall[0, 0] + 0.1


def test_tune_of_the_text_side_leaves_the_image_side(matrices):
    x, y = torch.randn(30, T), torch.arange(30) % 5
    iso = sb.IsoCLIP(*matrices, k_top=3, k_bottom=2).tune(x, y, side="text", k_top=(0, 1), k_bottom=(0,))
    assert (iso.k_top, iso.k_bottom, iso.text_k_bottom) == (3, 2, 0) and iso.text_k_top in (0, 1)
    assert_close(iso.text(x), paper(x, *matrices, iso.text_k_top, 0, "text"), "op")


def test_equal_scores_take_the_smaller_cut(matrices):
    u = torch.linalg.svd(matrices[0].double() @ matrices[1].double().T)[0][:, :WIDTH]
    y = torch.arange(8) % 2  # two directions in the middle tell the classes apart, whatever is cut beside
    x = torch.stack([u[:, 5] if label else u[:, 6] for label in y.tolist()]).float()
    iso = sb.IsoCLIP(*matrices).tune(x, y, k_top=(4, 2, 0), k_bottom=(3, 0))
    assert (iso.k_top, iso.k_bottom) == (0, 0)


def test_search_with_a_singular_projection():
    a = torch.randn(V, WIDTH)
    a[:, -3:] = a[:, :3]
    iso = sb.IsoCLIP(a, torch.randn(T, WIDTH)).tune(torch.randn(30, V), torch.arange(30) % 5)
    assert all(np.isfinite(score) for _, _, score in iso.search_)


# -- published ones ----------------------------------------------------------------------------------

B32 = torch.randn(300, 300, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(
    "published,weights",
    [
        ("OpenCLIP ViT-B/32", "ViT-B-32:laion2b_s34b_b79k"),
        ("OpenCLIP ViT-B/32", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"),
        ("OpenCLIP ViT-B/32", "openai"),
        ("ViT-B/32", "datacomp_xl_s13b_b90k"),
        ("vit-b-32", "laion/CLIP-ViT-B-32-DataComp.XL-s13B-b90K"),
    ],
)
def test_cuts_of_other_weights_are_refused(published, weights):
    told = r"published must name cuts of these weights \(.* were chosen on .*\), got .*; choose the cuts"
    with pytest.raises(ValueError, match=told):
        sb.IsoCLIP._made(Affine(B32, None), Affine(B32, None), published, {}, weights)


@pytest.mark.parametrize(
    "published,weights",
    [
        ("OpenCLIP ViT-B/32", "ViT-B-32:datacomp_xl_s13b_b90k"),
        ("OpenCLIP ViT-B/32", "laion/CLIP-ViT-B-32-DataComp.XL-s13B-b90K"),
        ("ViT-B/32", "openai/clip-vit-base-patch32"),
        ("ViT-B/32", "ViT-B-32-quickgelu:openai"),
        ("ViT-B/32", None),
    ],
)
def test_cuts_of_their_own_weights_are_taken(published, weights):
    iso = sb.IsoCLIP._made(Affine(B32, None), Affine(B32, None), published, {}, weights)
    assert (iso.k_top, iso.k_bottom) == ((50, 50) if "Open" in published else (150, 50))


def test_names_of_weights(tmp_path, monkeypatch):
    """Paths and addresses say nothing; a name of a hub, of open_clip or of a model's configuration does."""
    silent = (str(tmp_path), "https://x/openai", "a.safetensors", "", None)
    assert [weights_name(word) for word in silent] == [None] * 5
    assert weights_name("ViT-B-32:openai") == "ViT-B-32:openai" and weights_name("a/b") == "a/b"
    model, _, _ = sb.load_picto_clip()
    monkeypatch.setattr(type(model), "config", type("C", (), {"_name_or_path": "laion/x"}), raising=False)
    with pytest.raises(ValueError, match="got 'ViT-B/32' for 'laion/x'"):
        sb.IsoCLIP.from_clip(model, published="ViT-B/32")

"""SpectralFilter against the authors' numbers and the whole decomposition; chunks, routes, solvers, files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import semobridge_ext as sb
from semobridge_ext import reference
from semobridge_ext.discovery import centred, covariance, leading_spectrum
from tests.support.assertions import assert_figures, assert_same_bits
from tests.support.vectors import rows, vector

WARM = 0.2  # a temperature at which random features say something of many concepts


def features(images: int, concepts: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    texts = torch.randn(concepts, width, generator=g, dtype=torch.float64)
    shown = torch.randint(concepts, (images,), generator=g)
    noise = torch.randn(images, width, generator=g, dtype=torch.float64)
    return (texts[shown] + noise) * 3, texts


def reached(values: Tensor, share: float) -> int:
    total, so_far = float(values.sum()), 0.0
    for i, value in enumerate(values.tolist()):
        so_far += value
        if so_far >= share * total:
            return i + 1
    return len(values)


# -- the authors' numbers ------------------------------------------------------------------------------


@pytest.mark.parametrize("energy,key", [(0.95, "be0.95_bc0.99"), (1.0, "be1.00_bc0.99")])
@pytest.mark.parametrize("route", ["covariance", "gram"])
def test_authors_numbers(energy: float, key: str, route: str):
    given = vector("spectral_filter")
    images, texts = (rows(given["inputs"][n]) for n in ("image_features", "concept_features"))
    want = given["outputs"][key]
    if route == "gram":
        scores, spectrum = covariance.gram_scores(images, centred.unit(texts), 0.01, energy)
    else:
        made = sb.SpectralFilter(energy, 0.99, 0.01).fit(images, texts)
        scores, spectrum = made.scores_, made.spectrum_
        assert len(made.kept_) == want["n_concepts"]
    assert_figures(scores, want["scores"], "concept_scores")
    if energy < 1:
        assert len(spectrum) == want["n_components"]
        values = given["outputs"]["eigenvalues_descending"][: len(spectrum)]
        assert_figures(spectrum, values, "concept_scores")
    else:
        assert_figures(scores, given["outputs"]["column_variances_ddof1"], "concept_scores")


def test_authors_probabilities():
    given = vector("spectral_filter")
    images, texts = (rows(given["inputs"][n]) for n in ("image_features", "concept_features"))
    got = centred.probabilities(centred.unit(images[:3]), centred.unit(texts), 0.01)
    assert_figures(got, given["outputs"]["A_first_3_rows"], "concept_scores")


# -- the whole decomposition ---------------------------------------------------------------------------


@given(
    images=st.integers(2, 40), concepts=st.integers(2, 40), width=st.integers(1, 12),
    energy=st.sampled_from([0.3, 0.8, 0.95, 1.0]), share=st.sampled_from([0.5, 0.9, 0.99, 1.0]),
    seed=st.integers(0, 5),
)  # fmt: skip
def test_scores_are_those_of_the_whole_decomposition(images, concepts, width, energy, share, seed):
    x, t = features(images, concepts, width, seed)
    want = reference.spectral_filter(x, t, energy=energy, share=share, temperature=WARM)
    if float(want.scores.sum()) < 1e-9:  # images that say the same
        return
    got = sb.SpectralFilter(energy, share, WARM).fit(x, t)
    assert_figures(got.scores_, want.scores, "concept_scores")
    if energy < 1:
        assert_figures(got.spectrum_, want.spectrum, "concept_scores")
    kept, scores = got.kept_, got.scores_
    assert bool((scores[kept].diff() <= 0).all()) and len(set(kept.tolist())) == len(kept)
    others = torch.ones(concepts, dtype=torch.bool).index_fill_(0, kept, False)
    assert not others.any() or float(scores[others].max()) <= float(scores[kept].min())
    assert (
        abs(len(kept) - reached(want.scores.sort(descending=True).values, share)) <= (share == 1.0) * concepts
    )


@pytest.mark.parametrize("images", [30, 90], ids=["gram", "covariance"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_dtype_is_computed_in_float64(images: int, dtype: torch.dtype):
    x, t = (v.to(dtype) for v in features(images, 60, 8))
    got = sb.SpectralFilter(temperature=WARM).fit(x, t)
    want = reference.spectral_filter(x.double(), t.double(), temperature=WARM)
    assert got.scores_.dtype is torch.float64
    assert_figures(got.scores_, want.scores, "concept_scores")
    assert torch.equal(got.kept_, want.kept)
    array = sb.SpectralFilter(temperature=WARM).fit(x.float().numpy(), t.float().numpy())
    assert_same_bits(array.scores_, got.scores_)


def test_lengths_and_order_of_images_do_not_count():
    x, t = features(50, 30, 8)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(1))
    one = sb.SpectralFilter(temperature=WARM).fit(x, t)
    other = sb.SpectralFilter(temperature=WARM).fit(x[order] * 5, t * 7)
    assert_figures(other.scores_, one.scores_, "concept_scores")
    assert torch.equal(one.kept_, other.kept_)


def test_all_of_the_energy_needs_no_eigenproblem(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(covariance, "leading_eigenpairs", None)
    for images in (20, 60):
        x, t = features(images, 40, 6)
        got = sb.SpectralFilter(energy=1, temperature=WARM).fit(x, t)
        q = torch.softmax(centred.unit(x) @ centred.unit(t).T / WARM, dim=1)
        assert_figures(got.scores_, q.var(dim=0), "concept_scores")
        assert got.spectrum_.shape == (0,)


# -- blocks ------------------------------------------------------------------------------------------


def test_blocks_computed_twice_are_those_that_are_kept(monkeypatch: pytest.MonkeyPatch):
    x, t = features(30, 100, 8)
    kept = sb.SpectralFilter(temperature=WARM).fit(x, t)
    monkeypatch.setattr(centred, "KEPT_BYTES", 0)
    monkeypatch.setattr(centred, "BLOCK_BYTES", 8 * 30 * 7)  # seven concepts, and two at the end
    blocks = centred.Centred(x, centred.unit(t), WARM)
    assert blocks.whole is None and blocks.heavy == 100
    assert [q.shape[1] for q in blocks.blocks()] == [7] * 14 + [2]
    made = sb.SpectralFilter(temperature=WARM).fit(x, t)
    assert_figures(made.scores_, kept.scores_, "concept_scores")


@pytest.mark.parametrize("kept", [True, False])
def test_light_columns_are_summed_in_float32(monkeypatch: pytest.MonkeyPatch, kept: bool):
    """At the paper's temperature most concepts have next to no energy; the scores stay those of float64."""
    x, t = features(40, 300, 30, seed=2)
    monkeypatch.setattr(centred, "KEPT_BYTES", 1 << 30 if kept else 0)
    monkeypatch.setattr(centred, "LIGHT_COLUMNS", 50)
    made = centred.Centred(x, centred.unit(t), 0.02)
    q = torch.softmax(centred.unit(x) @ centred.unit(t).T / 0.02, dim=1)
    variances = q.var(dim=0)
    assert_figures(made.variances, variances, "concept_scores")
    assert 60 < made.heavy < 240
    inside = variances[made.order[made.heavy :]].sum() / variances.sum()
    outside = variances[made.order[made.heavy - 1 :]].sum() / variances.sum()
    assert inside <= centred.LIGHT < outside
    blocks = list(made.blocks())
    assert {b.dtype for b in blocks} == {torch.float32, torch.float64}
    assert all(b.shape[1] <= 50 for b in blocks[1:]) or kept
    heavy = torch.cat([b for b in blocks if b.dtype is torch.float64], dim=1)
    assert_figures(heavy, (q - q.mean(dim=0))[:, made.order[: made.heavy]], "concept_scores")
    for energy in (0.8, 0.95, 1.0):
        scores, _ = covariance.gram_scores(x, centred.unit(t), 0.02, energy)
        want = reference.spectral_filter(x, t, energy=energy, temperature=0.02)
        assert_figures(scores, want.scores, "concept_scores")


def test_products_in_fewer_bits_are_not_taken(monkeypatch: pytest.MonkeyPatch):
    x, t = features(40, 300, 30, seed=2)
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "medium")
    made = centred.Centred(x, centred.unit(t), 0.02)
    assert made.heavy == 300 and {b.dtype for b in made.blocks()} == {torch.float64}


def test_triangles_make_the_whole_product():
    x = torch.randn(700, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    total = torch.zeros(700, 700, dtype=torch.float64)
    for part in x.split(4, dim=1):
        covariance.add_product(total, part)
    assert_figures(covariance.mirror(total), x @ x.T, "concept_scores")


# -- chunks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("images", [25, 1300], ids=["gram", "covariance"])
@pytest.mark.parametrize("chunk", [1, 7, 300])
def test_partial_fit_gives_the_bits_of_fit(images: int, chunk: int):
    x, t = features(images, 40, 6)
    whole = sb.SpectralFilter(temperature=WARM).fit(x, t)
    parts = sb.SpectralFilter(temperature=WARM)
    for i, part in enumerate(x.split(chunk)):
        assert parts.partial_fit(part, t if i % 3 == 0 else None) is parts
    assert parts.n_images_ == images
    for name in ("scores_", "spectrum_"):
        assert_same_bits(getattr(parts, name), getattr(whole, name))
    assert torch.equal(parts.kept_, whole.kept_)


@pytest.mark.parametrize("cut", [20, 45, 400])
def test_scores_between_chunks_are_those_of_the_images_so_far(cut: int):
    x, t = features(700, 40, 6)
    parts = sb.SpectralFilter(temperature=WARM).partial_fit(x[:cut], t)
    for end in (cut, 700):
        whole = sb.SpectralFilter(temperature=WARM).fit(x[:end], t)
        assert_same_bits(parts.scores_, whole.scores_)
        assert_same_bits(parts.scores_, whole.scores_)  # asking changes nothing
        parts.partial_fit(x[cut:])


def test_images_are_copied():
    x, t = features(20, 40, 6)
    want = sb.SpectralFilter(temperature=WARM).fit(x, t)
    given = x.clone()
    parts = sb.SpectralFilter(temperature=WARM).partial_fit(given, t)
    given.zero_()
    assert_same_bits(parts.scores_, want.scores_)


def test_many_images_are_not_kept():
    x, t = features(3000, 10, 6)
    made = sb.SpectralFilter(temperature=WARM).partial_fit(x, t)
    assert sum(len(part) for part in made._chunks) < covariance.IMAGES
    empty = sb.SpectralFilter(temperature=WARM).partial_fit(x[:0], t).partial_fit(x)
    assert_same_bits(empty.scores_, made.scores_)


# -- the solver ----------------------------------------------------------------------------------------


def spectrum_of(values: Tensor, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(len(values), len(values), generator=g, dtype=torch.float64))[0]
    return basis @ torch.diag(values) @ basis.T


DECAY = torch.arange(1, 401, dtype=torch.float64) ** -2


@pytest.mark.parametrize(
    "values,share",
    [
        (DECAY, 0.95),
        (DECAY, 0.7),
        (torch.cat([torch.ones(30), 0.5 * torch.ones(20), torch.zeros(350)]).double(), 0.89),  # 30 > 8
        (torch.cat([torch.ones(5), torch.zeros(395)]).double(), 0.99),  # rank below a block
    ],
    ids=["decay", "early", "multiple", "low rank"],
)
def test_the_krylov_basis_finds_the_pairs_of_the_whole(monkeypatch, values: Tensor, share: float):
    matrix = spectrum_of(values)
    dense = leading_spectrum.leading_eigenpairs(matrix, share)
    monkeypatch.setattr(leading_spectrum, "DENSE", 10)
    monkeypatch.setattr(leading_spectrum, "BLOCK", 8)
    found = leading_spectrum._by_krylov(matrix, share, float(values.sum()))
    if found is None:  # copies beyond the block that rounding did not bring: seen, and left to the whole
        assert float(values[8]) == float(values[0])
        found = leading_spectrum.leading_eigenpairs(matrix, share)
    assert len(found[0]) == len(dense[0]) == reached(values, share)
    assert_figures(found[0], values[: len(found[0])], "concept_scores")
    for pairs in (found, dense):
        cut = (pairs[1] * pairs[0]) @ pairs[1].T
        if float(values[len(pairs[0]) - 1]) > float(values[len(pairs[0])]):  # else the cut is not determined
            assert_figures(cut.diagonal(), spectrum_of(
                torch.where(torch.arange(400) < len(pairs[0]), values, 0.0)
            ).diagonal(), "krylov_scores")  # fmt: skip
        residual = matrix @ pairs[1] - pairs[1] * pairs[0]
        assert_figures(residual, torch.zeros_like(residual), "krylov_scores", scale=float(values[0]))


@pytest.mark.parametrize("missing", [0, 7, 29])
def test_a_missing_copy_of_an_eigenvalue_is_seen(missing: int):
    values = torch.cat([torch.ones(30), 0.5 * torch.ones(20), torch.zeros(350)]).double()
    matrix = spectrum_of(values)
    pairs = torch.linalg.eigh(matrix)
    kept, vectors = pairs[0].flip(0)[:42], pairs[1].flip(1)[:, :42]
    start = torch.randn(400, 8, dtype=torch.float64)
    assert leading_spectrum._is_leading(matrix, kept, vectors, start)
    others = torch.arange(42) != missing
    assert not leading_spectrum._is_leading(matrix, kept[others], vectors[:, others], start)


def test_a_flat_spectrum_goes_to_the_whole_decomposition(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(leading_spectrum, "DENSE", 10)
    monkeypatch.setattr(leading_spectrum, "BLOCK", 8)
    matrix = spectrum_of(torch.linspace(1.0, 0.9, 200, dtype=torch.float64))
    assert leading_spectrum._by_krylov(matrix, 0.95, float(matrix.trace())) is None
    assert len(leading_spectrum.leading_eigenpairs(matrix, 0.95)[0]) == 190


def test_a_slow_spectrum_fits_the_basis(monkeypatch: pytest.MonkeyPatch):
    """Narrow blocks make polynomials of a high degree: pairs that wide ones do not reach in it."""
    values = torch.exp(-torch.arange(1200, dtype=torch.float64) / 40)
    matrix, taken = spectrum_of(values), []
    look = leading_spectrum._ritz_pairs
    monkeypatch.setattr(leading_spectrum, "_ritz_pairs", lambda *a: taken.append(len(a[0])) or look(*a))
    found = leading_spectrum._by_krylov(matrix, 0.95, float(values.sum()))
    assert found is not None and len(found[0]) == reached(values, 0.95) > 100
    assert_figures(found[0], values[: len(found[0])], "concept_scores")
    assert len(taken) < 12 and taken == sorted(set(taken))


def test_looks_at_the_basis_come_where_the_residual_should_be_small():
    look = leading_spectrum._next_look
    assert look([(1000, 1e-3)]) == 1150  # one look tells no slope
    assert look([(900, 1e-3), (1000, 2e-3)]) == 1150  # nor does one that rises
    assert look([(900, 1e-3), (1000, 1e-5)]) == 1150  # 300 are lacking: not all at once
    assert look([(900, 1e-3), (1000, 1e-9)]) == 1033


def test_filter_through_the_krylov_basis(monkeypatch: pytest.MonkeyPatch):
    x, t = features(300, 200, 5, seed=3)
    monkeypatch.setattr(leading_spectrum, "DENSE", 10)
    monkeypatch.setattr(leading_spectrum, "BLOCK", 8)
    taken: list[Any] = []
    krylov = leading_spectrum._by_krylov
    monkeypatch.setattr(leading_spectrum, "_by_krylov", lambda *a: taken.append(krylov(*a)) or taken[-1])
    for images in (x, x[:150]):
        got = sb.SpectralFilter(0.8, temperature=2.0).fit(images, t)
        want = reference.spectral_filter(images, t, energy=0.8, temperature=2.0)
        assert_figures(got.scores_, want.scores, "krylov_scores")
        assert torch.equal(got.kept_, want.kept)
    assert len(taken) == 2 and None not in taken


# -- files and parameters --------------------------------------------------------------------------------


def test_saved_filter_is_the_same(tmp_path: Path):
    x, t = features(50, 30, 8)
    made = sb.SpectralFilter(0.9, 0.95, WARM).fit(x, t)
    path = tmp_path / "filter.safetensors"
    made.save(path)
    found = sb.SpectralFilter.load(path)
    assert_same_bits(found.scores_, made.scores_)
    assert_same_bits(found.spectrum_, made.spectrum_)
    assert torch.equal(found.kept_, made.kept_) and found.n_images_ == 50 and found.n_features_in_ == 8
    assert found.get_params() == {"energy": 0.9, "share": 0.95, "temperature": WARM} and "0.95" in repr(found)
    for spent in (made, found):
        with pytest.raises(ValueError, match=r"SpectralFilter.partial_fit: the filter must have its images"):
            spent.partial_fit(x, t)
    assert_same_bits(found.fit(x, t).scores_, made.scores_)
    found.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    with pytest.raises(ValueError, match=r"filter\.safetensors"):
        sb.SpectralFilter.load(path)


def test_file_of_another_estimator_is_named(tmp_path: Path):
    sb.LinearMap(torch.eye(3)).save(tmp_path / "map.safetensors")
    with pytest.raises(ValueError, match=r"must be a 'semobridge-ext SpectralFilter 1' file"):
        sb.SpectralFilter.load(tmp_path / "map.safetensors")


def test_unfitted_filter_says_what_to_do(tmp_path: Path):
    for ask in (lambda f: f.scores_, lambda f: f.kept_, lambda f: f.save(tmp_path / "x")):
        with pytest.raises(ValueError, match=r"must be fitted to at least two images first, got 0; call fit"):
            ask(sb.SpectralFilter())
    assert not hasattr(sb.SpectralFilter(), "scores_")


# -- bad input -----------------------------------------------------------------------------------------

X, T = features(10, 6, 4)
WITH_NAN = X.clone()
WITH_NAN[7, 2] = float("nan")

BAD: dict[str, tuple[Any, ...]] = {
    "NaN": (WITH_NAN, T, {}, ValueError, r"image_features must be finite, .* 1 of 10 rows \(first: 7\)"),
    "infinite concept": (X, T / 0, {}, ValueError, r"concept_features must be finite"),
    "width": (X[:, :3], T, {}, ValueError, r"image_features must have width 4, got .*; take both"),
    "one image": (X[:1], T, {}, ValueError, r"image_features must have 2 rows, got 1 row; a covariance"),
    "one concept": (X, T[:1], {}, ValueError, r"concept_features must have 2 rows"),
    "no image": (X[:0], T, {}, ValueError, r"image_features must have 2 rows, got 0 row"),
    "alike": (X[:1].repeat(4, 1), T, {}, ValueError, r"image_features must differ from each other, got"),
    "integers of texts": (X, [["a"]], {}, ValueError, r"could not convert string"),
    "energy 0": (X, T, {"energy": 0}, ValueError, r"energy must be above 0 and at most 1, got int 0; 0.95"),
    "energy 2": (X, T, {"energy": 1.5}, ValueError, r"energy must be above 0 and at most 1, got float 1.5"),
    "share": (X, T, {"share": float("nan")}, ValueError, r"share must be above 0 and at most 1, got"),
    "temperature": (X, T, {"temperature": 0.0}, ValueError, r"temperature must be above 0, got float 0.0"),
    "text": (X, T, {"temperature": "0.1"}, TypeError, r"temperature must be a number, got str '0.1'; 0.01"),
    "truth": (X, T, {"energy": True}, TypeError, r"energy must be a number, got bool True"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case: str):
    images, texts, params, kind, told = BAD[case]
    made = sb.SpectralFilter(temperature=WARM).fit(X, T)
    before = made.scores_
    made.set_params(**params)
    with pytest.raises(kind, match=told):
        made.fit(images, texts)
    assert made.scores_ is before  # what was fitted stays


def test_bad_chunks_are_named():
    with pytest.raises(
        ValueError, match=r"SpectralFilter.partial_fit: concept_features must come with the first"
    ):
        sb.SpectralFilter().partial_fit(X)
    made = sb.SpectralFilter(temperature=WARM).partial_fit(X, T)
    want = made.scores_
    with pytest.raises(ValueError, match=r"concept_features must be those of the first call, got others"):
        made.partial_fit(X, T + 1)
    with pytest.raises(ValueError, match=r"image_features must be finite"):
        made.partial_fit(WITH_NAN)
    with pytest.raises(ValueError, match=r"temperature must stay as it was, got 0.5 after 0.2"):
        made.set_params(temperature=0.5).partial_fit(X)
    assert_same_bits(made.set_params(temperature=WARM).scores_, want)


def test_zero_rows_are_even_and_inputs_stay():
    x = np.vstack([X[:8].numpy(), np.zeros((2, 4))])
    given = x.copy()
    got = sb.SpectralFilter(temperature=WARM).fit(x, T)
    q = torch.softmax(centred.unit(torch.from_numpy(x)) @ centred.unit(T).T / WARM, dim=1)
    assert_figures(q[-1], torch.full((6,), 1 / 6, dtype=torch.float64), "concept_scores")
    want = reference.spectral_filter(torch.from_numpy(x), T, temperature=WARM)
    assert_figures(got.scores_, want.scores, "concept_scores")
    assert np.array_equal(x, given)

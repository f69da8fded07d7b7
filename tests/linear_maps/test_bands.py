"""bands.py: IsoCLIP's projectors without a decomposition, on spectra that are hard for a Gram matrix."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import semobridge_ext as sb
from semobridge_ext.linear_maps import bands
from semobridge_ext.linear_maps.spectrum import Spectrum, spectrum_of
from tests.support.assertions import assert_figures, assert_same_bits

F64 = torch.float64
SIDES = ("image", "text")
GEOMETRIC = [2.0**-i for i in range(8)]


def matrices(values: list[float] | Tensor, v: int, t: int, d: int) -> tuple[Tensor, Tensor]:
    """A [V, D] and W [T, D] with the singular values `values` of A·Wᵀ, of which either has the roots."""
    values = torch.as_tensor(values, dtype=F64)
    u, h, q = (torch.linalg.qr(torch.randn(n, len(values), dtype=F64)).Q for n in (v, t, d))
    return (u * values.sqrt()) @ q.T, (h * values.sqrt()) @ q.T


def exact(a: Tensor, w: Tensor, top: int, bottom: int) -> dict[str, Tensor]:
    """U_S U_Sᵀ A and H_S H_Sᵀ W with 40 digits."""
    mp = pytest.importorskip("mpmath", reason="mpmath is not installed").mp
    found = {}
    with mp.workdps(40):
        own = {"image": mp.matrix(a.tolist()), "text": mp.matrix(w.tolist())}
        psi, rank = own["image"] * own["text"].T, min(*a.shape, *w.shape)
        flat = psi.rows < psi.cols
        u, _, vt = mp.svd_r(psi.T if flat else psi)
        for side, basis in zip(SIDES, (vt.T, u) if flat else (u, vt.T), strict=True):
            kept = basis[:, top : rank - bottom]
            m = kept * (kept.T * own[side])
            found[side] = torch.tensor(
                [[float(m[i, j]) for j in range(m.cols)] for i in range(m.rows)], dtype=F64
            )
    return found


def decomposed(a: Tensor, w: Tensor, top: int, bottom: int) -> dict[str, Tensor]:
    """The same in float64 by LAPACK."""
    u, _, ht = torch.linalg.svd(a @ w.T)
    kept = slice(top, min(*a.shape, *w.shape) - bottom)
    bases = {"image": u[:, kept], "text": ht.T[:, kept]}
    return {side: bases[side] @ (bases[side].T @ own) for side, own in zip(SIDES, (a, w), strict=True)}


def by_gram(spectrum: Spectrum) -> bool:
    return "decomposition" not in spectrum.__dict__


def check(spectrum: Spectrum, top: int, bottom: int, context: str) -> None:
    """Both sides are as near to the exact map as LAPACK's decomposition, or as float64 can tell."""
    a, w = (spectrum.projections[side] for side in SIDES)
    want, lapack = exact(a, w, top, bottom), decomposed(a, w, top, bottom)
    for side, own in zip(SIDES, (a, w), strict=True):
        error = float((spectrum.projector(side, top, bottom) - want[side]).abs().max())
        scale = float((lapack[side] - want[side]).abs().max()) + 2.0**-52 * float(own.abs().max())
        assert_figures(error, 0.0, "band", scale=scale, context=f"{context}, {side}")


SHAPES = {
    "square": (8, 8, 8),
    "tall images": (13, 8, 8),
    "tall texts": (8, 11, 8),
    "both taller than D": (13, 11, 8),
    "r is T": (13, 8, 9),
    "r is V": (8, 13, 9),
}
SPECTRA = {
    "geometric": (GEOMETRIC, 2, 1),
    "half of the decades": ([10 ** (-2.5 * i / 7) for i in range(8)], 2, 3),
    "equal within the band": ([4, 4, 4, 2, 2, 2, 1, 0.5], 3, 2),
    "all equal but one": ([2.0] + [1.0] * 7, 1, 0),
    "close at the cut": ([4, 3, 2, 1.999, 1, 0.5, 0.25, 0.125], 3, 0),
    "nothing cut": (GEOMETRIC, 0, 0),
    "the last cut": (GEOMETRIC, 0, 1),
}


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("shape", SHAPES)
def test_against_forty_digits(shape: str, spectrum: str):
    values, top, bottom = SPECTRA[spectrum]
    found = spectrum_of(*matrices(values, *SHAPES[shape]))
    check(found, top, bottom, "Gram")
    assert by_gram(found)


HARD = {
    "five decades": ([10 ** (-5 * i / 7) for i in range(8)], ((2, 3), (7, 0), (0, 7), (0, 1))),
    "eight decades": ([10.0**-i for i in range(8)], ((3, 2), (6, 1), (0, 5))),
    "far below float64's squares": ([1, 0.5, 0.25, *[10.0 ** (-9 - i) for i in range(5)]], ((1, 5), (3, 2))),
    "close across four digits": ([1, 0.5, 0.25 + 1e-8, 0.25, 0.1, 0.05, 0.02, 0.01], ((3, 0), (3, 2))),
    "one direction": (GEOMETRIC, ((7, 0), (0, 7))),
    "a cut among zeros": ([*GEOMETRIC[:5], 0, 0, 0], ((0, 2), (2, 1), (2, 0))),
}


@pytest.mark.parametrize("spectrum", HARD)
@pytest.mark.parametrize("shape", ["square", "both taller than D"])
def test_hard_spectra(shape: str, spectrum: str):
    """By either way; which it was does not matter."""
    values, cuts = HARD[spectrum]
    found = spectrum_of(*matrices(values, *SHAPES[shape]))
    for top, bottom in cuts:
        check(found, top, bottom, f"cut {top}, {bottom}")


@pytest.mark.parametrize("least", [1e-9, 1e-14, 0.0])
def test_lower_rank(least: float):
    """What vanishes is cut: the band that is kept says all, and is not decomposed."""
    found = spectrum_of(*matrices([*GEOMETRIC[:5], least, least, least], 13, 8, 8))
    check(found, 2, 3, "cut off")
    assert by_gram(found)


EQUAL = {
    "at the top": ([4, 3, 1, 1, 0.5, 0.25, 0.125, 0.0625], 3, 0),
    "at the bottom": ([1, 0.5, 0.25, 0.125, 0.0625, 0.01, 0.01, 0.01], 0, 2),
    "everywhere": ([1.0] * 8, 4, 2),
}


@pytest.mark.parametrize("spectrum", EQUAL)
def test_equal_values_across_a_cut_are_decomposed(spectrum: str):
    """Which of them is kept is nobody's to say: the projector keeps some, as the decomposition has them."""
    values, top, bottom = EQUAL[spectrum]
    a, w = matrices(values, 13, 8, 8)
    for side in SIDES:
        found = spectrum_of(a, w)
        got = found.projector(side, top, bottom)
        assert not by_gram(found)
        basis = found.basis(side, top, bottom)
        assert_same_bits(got, basis @ (basis.T @ found.projections[side]))


@pytest.mark.parametrize("size", [1e-200, 1e-12, 1e12, 1e200])
def test_any_size_of_entries(size: float):
    """Where the squares of Ψ would leave float64's range, or its entries float32's, it is decomposed."""
    a, w = matrices(GEOMETRIC, 13, 8, 8)
    want = spectrum_of(a, w).projector("image", 2, 1)
    for matrix, other in ((a * size, w / size), (a * size, w)):
        found = spectrum_of(matrix, other)
        assert_figures(found.projector("image", 2, 1) / size, want, "isoclip")
    assert by_gram(found) == (1e-18 < size < 1e18)


def wide(d: int, decades: float) -> tuple[Tensor, Tensor]:
    return matrices(10 ** (-decades * torch.arange(d, dtype=F64) / (d - 1)), d + d // 2, d, d)


@pytest.mark.parametrize("d", [4, 5, 63, 130])
def test_widths(d: int):
    a, w = wide(d, 2)
    for top, bottom in ((d // 3, d // 8), (d // 2, d // 4), (1, 0), (0, 0)):
        found, want = spectrum_of(a, w), decomposed(a, w, top, bottom)
        for side in SIDES:
            assert_figures(
                found.projector(side, top, bottom), want[side], "isoclip", context=f"{top}, {bottom}"
            )
        assert by_gram(found)


def test_the_turn_is_needed(monkeypatch: pytest.MonkeyPatch):
    """The limits see a Gram matrix that is left as it is."""
    a, w = wide(63, 3)
    want = decomposed(a, w, 20, 10)["image"]
    assert_figures(spectrum_of(a, w).projector("image", 20, 10), want, "isoclip")
    monkeypatch.setattr(bands, "_NEAR", 0.0)
    with pytest.raises(AssertionError, match="is beyond"):
        assert_figures(spectrum_of(a, w).projector("image", 20, 10), want, "isoclip")


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape", [(768, 512, 512, 150, 50), (1025, 769, 768, 250, 200), (1024, 1024, 1024, 10, 300)]
)
def test_the_size_of_a_model(shape: tuple[int, ...]):
    v, t, d, top, bottom = shape
    a, w = matrices(10 ** (-2 * torch.arange(d, dtype=F64) / (d - 1)), v, t, d)
    a, w = a.float().double(), w.float().double()
    found, want = spectrum_of(a, w), decomposed(a, w, top, bottom)
    for side in SIDES:
        assert_figures(found.projector(side, top, bottom), want[side], "isoclip", context=side)
    assert by_gram(found)


@pytest.mark.parametrize("side", SIDES)
def test_with_biases(side: str):
    a, w = matrices(GEOMETRIC, 14, 9, 8)
    iso = sb.IsoCLIP(a[:-1], w[:-1], image_bias=a[-1], text_bias=w[-1], k_top=2, k_bottom=1)
    step = iso.map(side).steps[0]
    got = torch.cat([step.matrix, step.offset.unsqueeze(0)])
    assert_figures(got, decomposed(a, w, 2, 1)[side], "isoclip")


# -- what is decided, and when ------------------------------------------------------------------------


def test_the_bits_do_not_hang_on_what_ran_before():
    a, w = matrices(GEOMETRIC, 13, 8, 8)
    want = sb.IsoCLIP(a, w, k_top=2, k_bottom=1).map().steps[0].matrix
    other = sb.IsoCLIP(a, w, k_top=2, k_bottom=1)
    assert len(other.singular_values) == 8
    other.map("text"), other.map(compress=True)
    other.tune(torch.randn(12, 13), torch.arange(12) % 3, k_top=(2,), k_bottom=(1,))
    assert_same_bits(other.map().steps[0].matrix, want)
    with torch.inference_mode():
        third = sb.IsoCLIP(a, w, k_top=2, k_bottom=1)
        assert_same_bits(third.map().steps[0].matrix, want)
    twice = [third.map(side, normalize=False).steps[0].matrix for side in SIDES]
    assert_same_bits(twice[0], want)
    assert_same_bits(twice[1], other.map("text").steps[0].matrix)


def test_nothing_is_decomposed_before_it_is_asked_for():
    a, w = matrices(GEOMETRIC, 13, 8, 8)
    iso = sb.IsoCLIP(a, w, k_top=2, k_bottom=1)
    iso.image(torch.randn(3, 13)), iso.text(torch.randn(3, 8))
    assert by_gram(iso._spectrum())
    iso.image(torch.randn(3, 13), compress=True)
    assert not by_gram(iso._spectrum())

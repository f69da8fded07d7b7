"""What IsoCLIP takes from the two projections: the spectrum of Ψ = A Wᵀ, and the search for its cuts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from semobridge_ext import _errors, _inputs, _numbers
from semobridge_ext.clip.affine import with_bias
from semobridge_ext.linear_maps.bands import Gram, band_map, gram_of
from semobridge_ext.linear_maps.linear_map import LinearMap
from semobridge_ext.retrieval.metrics import retrieval_metrics

_METRICS = "be 'mAP', 'mAP@R', 'R-Precision' or 'Recall@k'"

# k_top, k_bottom for images, then for texts, as arXiv 2603.19862 reports them.
UNPUBLISHED = "unpublished"
PUBLISHED: dict[str, tuple[int, int, Any, Any]] = {
    "ViT-B/32": (150, 50, 20, 100),
    "ViT-B/16": (200, 50, 10, 50),
    "ViT-L/14": (250, 200, 10, 300),
    "OpenCLIP ViT-B/32": (50, 50, UNPUBLISHED, UNPUBLISHED),
    "OpenCLIP ViT-B/16": (100, 100, 2, 150),
    "PE-Core-B/16": (300, 50, UNPUBLISHED, UNPUBLISHED),
    "SigLIP2 ViT-B/16": (350, 50, UNPUBLISHED, UNPUBLISHED),
}
# Whose weights they were chosen on, as words of which one stands in a name of them: another training of the
# same architecture has other singular vectors.
WEIGHTS: dict[str, tuple[str, ...]] = {
    "ViT-B/32": ("openai",), "ViT-B/16": ("openai",), "ViT-L/14": ("openai",),
    "OpenCLIP ViT-B/32": ("datacomp_xl_s13b_b90k",), "OpenCLIP ViT-B/16": ("datacomp_xl_s13b_b90k",),
    "PE-Core-B/16": ("meta", "facebook", "pe_core"), "SigLIP2 ViT-B/16": ("webli", "siglip2"),
}  # fmt: skip
# Of the search, as shares of r.
_GRID = (0.0, 0.01, 0.02, 0.04, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5)


class Spectrum:
    """What follows from the two projections, in float64 on the CPU, each part at its first use.

    A projection with a bias is the matrix [A; a] of rows with a one appended: one row taller, which V and T
    here count.

    Args:
        projections: A [V, D] and W [T, D] by side.
        constants: whether a side's last row belongs to the appended one.
    """

    def __init__(self, projections: dict[str, Tensor], constants: dict[str, bool]) -> None:
        self.projections, self.constants = projections, constants
        self.rank = min(min(m.shape) for m in projections.values())  # r, of Ψ at most

    def width(self, side: str) -> int:
        """Of the features before the projection, without the one."""
        return self.projections[side].shape[0] - self.constants[side]

    def parts(self, side: str, matrix: Tensor) -> tuple[Tensor, Tensor | None]:  # [V, K] -> [width, K], [K]
        """A map of rows with a one appended as a matrix and an offset."""
        return (matrix[:-1], matrix[-1]) if self.constants[side] else (matrix, None)

    @cached_property
    def decomposition(self) -> Decomposition:
        """The thin SVD of Ψ by the factors of tall matrices: D×D instead of V×T, and no rank beyond D."""
        (qa, ra), (qw, rw) = (_tall(self.projections[side]) for side in ("image", "text"))
        u, s, ht = torch.linalg.svd(ra @ rw.T, full_matrices=False)
        bases = {side: m if q is None else q @ m for side, q, m in (("image", qa, u), ("text", qw, ht.T))}
        return Decomposition(bases, s)

    @cached_property
    def _gram(self) -> Gram | None:
        image, text = self.projections["image"], self.projections["text"]
        return gram_of(image, text) if len(image) >= len(text) else gram_of(text, image)

    def projector(self, side: str, top: int, bottom: int) -> Tensor:  # [V, D] or [T, D]
        """``U_k U_kᵀ A`` or ``H_k H_kᵀ W``, by the Gram matrix where that is as exact as the decomposition.

        A decomposition that is there already is not asked: the bits are the same whatever ran before.
        """
        matrix = self.projections[side]
        if self._gram is not None:
            is_tall = (side == "image") == (len(self.projections["image"]) >= len(self.projections["text"]))
            found = band_map(self._gram, matrix, is_tall, top, bottom)
            if found is not None:
                return found
        basis = self.basis(side, top, bottom)
        return basis @ (basis.T @ matrix)

    def basis(self, side: str, top: int, bottom: int) -> Tensor:  # [V, k] or [T, k]
        """The singular vectors that a cut leaves."""
        return self.decomposition.bases[side][:, top : self.rank - bottom]


class Decomposition(NamedTuple):
    bases: dict[str, Tensor]  # [V, r] and [T, r] singular vectors of Ψ
    singular: Tensor  # [r]


def spectrum_of(
    image: Tensor,  # [V, D]
    text: Tensor,  # [T, D]
    image_bias: Tensor | None = None,  # [D]
    text_bias: Tensor | None = None,  # [D]
) -> Spectrum:
    a, w = (
        with_bias("IsoCLIP", f"{side}_bias", m.detach().to("cpu", torch.float64), b)
        for side, m, b in (("image", image, image_bias), ("text", text, text_bias))
    )
    return Spectrum({"image": a, "text": w}, {"image": len(a) > len(image), "text": len(w) > len(text)})


def _tall(m: Tensor) -> tuple[Tensor | None, Tensor]:
    """Q and R; a matrix that is no taller than wide has nothing to gain and is its own R."""
    return (None, m) if m.shape[0] <= m.shape[1] else torch.linalg.qr(m)


def factor_of(rows: Tensor) -> Tensor:  # [k, D] -> [k, k]
    """The lower triangular C with ``C Cᵀ = rows·rowsᵀ``.

    It is Cholesky's factor, taken from the QR of the rows: their product would square the condition.
    """
    r = torch.linalg.qr(rows.T, mode="r").R
    return (r * torch.where(r.diagonal() < 0, -1.0, 1.0).unsqueeze(1)).T


def search_cuts(
    function: str,
    spectrum: Spectrum,
    side: str,
    X: Any,
    y: Any,
    tops: Sequence[int] | None,
    bottoms: Sequence[int] | None,
    metric: str,
) -> tuple[int, int, list[tuple[int, int, float]]]:
    """The best cuts of one side by leave-one-out retrieval on (X, y), and the score of every pair."""
    if not isinstance(metric, str):
        raise TypeError(_errors.message(function, "metric", _METRICS, _errors.describe(metric), "choose one"))
    x = _inputs.features(function, "X", X, spectrum.width(side))
    names = _inputs.names(function, y, len(x))
    codes = _inputs.encode(function, names, _inputs.ordered(names))
    if len(codes.unique()) == len(codes):
        got, remedy = f"{len(codes)} labels, each once", "the metric ranks rows of one label before others"
        raise ValueError(_errors.message(function, "y", "have a label of two rows", got, remedy))
    rank, bases = spectrum.rank, spectrum.decomposition.bases
    grid = [_grid(function, name, v, rank) for name, v in (("k_top", tops), ("k_bottom", bottoms))]
    # Equal scores go to the smaller cut.
    cuts = sorted(((a, b) for a in grid[0] for b in grid[1] if a + b < rank), key=lambda c: (sum(c), c[0]))
    if not cuts:
        got, remedy = f"{grid[0]} and {grid[1]}", f"the model has {rank} directions"
        raise ValueError(_errors.message(function, "k_top", "leave a direction", got, remedy))
    basis, constant = spectrum.parts(side, bases[side])
    coordinates = x.to("cpu", torch.float64) @ basis  # [N, r], once
    coordinates = (coordinates if constant is None else coordinates + constant).float()
    rows = bases[side].T @ spectrum.projections[side]  # [r, D]
    gram = rows @ rows.T
    ks = (int(metric[7:]),) if metric.startswith("Recall@") and metric[7:].isdigit() else (1,)
    results = []
    for top, bottom in cuts:
        kept = slice(top, rank - bottom)
        factor, failed = torch.linalg.cholesky_ex(gram[kept, kept])
        if bool(failed):  # a projection of lower rank: the D-wide form serves any
            factor = rows[kept]
        feats = LinearMap(factor)(coordinates[:, kept])
        found = retrieval_metrics(feats, feats, codes, codes, same_set=True, recall_at=ks)
        if metric not in found:
            raise ValueError(_errors.message(function, "metric", _METRICS, f"'{metric}'", "choose one"))
        results.append((top, bottom, found[metric]))
    best = max(results, key=lambda row: row[2])  # the first of equals
    return best[0], best[1], results


def _letters(name: Any) -> str:
    return "".join(c for c in str(name).lower() if c.isalnum())


def published_cuts(name: str, weights: str | None = None) -> tuple[int, int, Any, Any]:
    """The published cuts of a model; ValueError where `weights` names others than they were chosen on."""
    for known, cuts in PUBLISHED.items():
        if not isinstance(name, str) or _letters(known) != _letters(name):
            continue
        words = WEIGHTS[known]
        if weights is not None and not any(_letters(word) in _letters(weights) for word in words):
            contract = f"name cuts of these weights (those of {known} were chosen on {words[0]})"
            remedy = "choose the cuts with tune(X, y), or pass k_top, k_bottom and the text's"
            got = f"{name!r} for {weights!r}"
            raise ValueError(_errors.message("IsoCLIP", "published", contract, got, remedy))
        return cuts
    contract = f"be one of {', '.join(PUBLISHED)}"
    remedy = "the paper names no others; choose the cuts with tune(X, y)"
    raise ValueError(_errors.message("IsoCLIP", "published", contract, name, remedy))


def weights_name(source: Any) -> str | None:
    """What a name says of weights; None for a path, a URL or nothing."""
    if not isinstance(source, str) or not source or "://" in source or os.path.exists(source):
        return None
    return source if ":" in source or "/" in source else None


def _grid(function: str, name: str, values: Any, rank: int) -> list[int]:
    if values is None:
        return sorted({round(share * rank) for share in _GRID})
    found = _numbers.whole_numbers(function, name, values, "range(0, 60, 10)")
    for value in found:
        if value < 0:
            raise ValueError(_errors.message(function, name, "hold ints ≥ 0", value, "pass range(0, 60, 10)"))
    return list(found)

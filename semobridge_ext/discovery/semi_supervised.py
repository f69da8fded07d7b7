"""Semi-supervised k-means: rows of known classes stay in the clusters of these classes.

    seeds     the means of the known classes, then rows x drawn with probability ~ min_c ‖x − seed_c‖²;
              of some such rows the one that leaves the smallest sum of squares (greedy k-means++)
    assign    argmin_c ‖x − m_c‖², the lower c of equals; a row of a known class keeps its own
    update    m_c = mean of its rows; a cluster without rows keeps its mean

The seeds of K clusters are the first of those of K + 1, so that runs with several K differ by what K changes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize

from semobridge_ext._ops.topk.op import topk
from semobridge_ext.runtime.rows import compute_dtype

_BLOCK = 1 << 14  # rows that are float64 at once
_SETTLED = 1000  # a run ends where at most every so many rows change their cluster


class Points:
    """Unit rows, with a one behind each: ⟨(x, 1), (m, −‖m‖²/2)⟩ is largest where ‖x − m‖² is smallest."""

    def __init__(self, rows: Tensor) -> None:  # [N, D]
        unit = normalize(rows.to(compute_dtype(rows.dtype)), dim=1)
        self.rows = torch.cat([unit, unit.new_ones(len(unit), 1)], dim=1)  # [N, D + 1]
        self.lengths = unit.square().sum(dim=1)  # 1, or 0 of a zero row

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def device(self) -> torch.device:
        return self.rows.device

    def at(self, places: Tensor) -> Tensor:  # [n] -> [n, D]
        return self.rows[places, :-1]

    def nearest(self, means: Tensor) -> tuple[Tensor, Tensor]:  # [K, D] -> [N], [N]
        """The nearest mean of each row and the squared distance from it."""
        halves = means.square().sum(dim=1, keepdim=True) / -2
        found = topk(self.rows, torch.cat([means, halves], dim=1), 1)
        squares = (self.lengths - 2 * found.scores[:, 0]).clamp(min=0)
        return found.indices[:, 0], squares

    def squares(self, places: Tensor) -> Tensor:  # [n] -> [n, N]
        """Squared distances from some rows."""
        products = self.at(places) @ self.rows[:, :-1].T
        squares = self.lengths + self.lengths[places][:, None] - 2 * products
        squares.scatter_(1, places[:, None], 0)  # whatever rounding says
        return squares.clamp(min=0)

    def means(self, codes: Tensor, before: Tensor) -> Tensor:  # [N], [K, D] -> [K, D]
        """Of each cluster's rows, summed in float64; codes below 0 are of none."""
        sums = torch.zeros(before.shape, dtype=torch.float64, device=self.device)
        counts = torch.zeros(len(before), dtype=torch.float64, device=self.device)
        for part, rows in zip(codes.split(_BLOCK), self.rows.split(_BLOCK), strict=True):
            known = part >= 0
            sums.index_add_(0, part[known], rows[known, :-1].double())
            counts += torch.bincount(part[known], minlength=len(before))
        mean = (sums / counts.clamp(min=1)[:, None]).to(before.dtype)
        return torch.where(counts[:, None] > 0, mean, before)


class Seeds:
    """Where clusters begin: means of the known classes, then rows, up to ``most`` clusters."""

    def __init__(self, points: Points, known: Tensor, most: int, generator: torch.Generator) -> None:
        """known: [N] int64 codes 0 .. A−1 of the known classes, −1 for the other rows."""
        self._points, self.known = points, known
        count = int(known.max()) + 1
        width = points.rows.shape[1] - 1
        self.classes = points.means(known, points.rows.new_zeros(count, width))
        self._drawn = self._draw(max(most - count, 0), generator)

    def _draw(self, count: int, generator: torch.Generator) -> Tensor:  # [count] rows
        points, free = self._points, (self.known < 0).double()
        squares = torch.full_like(points.lengths, 4)  # no two unit rows are further apart
        if len(self.classes):
            squares = points.nearest(self.classes)[1]
        drawn: list[Tensor] = []
        trials = 2 + int(math.log(max(count, 1)))  # as many as scikit-learn's
        for words in torch.rand(count, trials, generator=generator, dtype=torch.float64).to(points.device):
            sums = torch.cumsum(squares * free, dim=0)
            if not float(sums[-1]):  # every distinct row is a seed already
                sums = torch.cumsum(torch.ones_like(free), dim=0)
            places = torch.searchsorted(sums, sums[-1] * words, right=True).clamp(max=len(points) - 1)
            left = torch.minimum(squares, points.squares(places))
            best = left.sum(dim=1).argmin()
            squares = left[best]
            drawn.append(places[best])
        return torch.stack(drawn) if drawn else torch.empty(0, dtype=torch.int64, device=points.device)

    def means(self, clusters: int) -> Tensor:  # [K, D]
        return torch.cat([self.classes, self._points.at(self._drawn[: clusters - len(self.classes)])])


def clustered(points: Points, seeds: Seeds, clusters: int, max_iter: int) -> Tensor:  # [N] int64
    """The cluster of each row; those of the known classes come first, in the order of their codes."""
    means, codes = seeds.means(clusters), None
    for _ in range(max_iter):
        found = torch.where(seeds.known >= 0, seeds.known, points.nearest(means)[0])
        moved = len(points) if codes is None else int((found != codes).sum())
        codes = found
        if moved * _SETTLED <= len(points):
            break
        means = points.means(codes, means)
    assert codes is not None
    return codes

"""Which channels APE and APE-T keep (arXiv 2304.01195): those that tell the classes apart."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from semobridge_ext import _errors
from semobridge_ext._schema import need
from semobridge_ext.fewshot import published
from semobridge_ext.fewshot.caches import TipAdapter
from semobridge_ext.fewshot.conventions import Absent
from semobridge_ext.fewshot.published import Selection


def ape_scores(
    text: Tensor,  # [C, D] unit rows
    shots: Tensor,  # [S, D] unit rows
    labels: Tensor,  # [S] int64
    w0: float = 0.7,
    w1: float = 0.3,
) -> Tensor:  # [D]
    """APE's channel scores, ``−w0·(mean inter-class product) + w1·var(text)``, in O(C·K·D).

    With s_c the sum of a class's rows (text and shots) and S = Σ_c s_c, the products over pairs of
    different classes sum to ``S⊙S − Σ_c s_c⊙s_c``; any number of shots per class, also none.
    """
    classes = len(text)
    sums = text.clone().index_add_(0, labels, shots)
    counts = 1.0 + torch.bincount(labels, minlength=classes).double()
    pairs = counts.sum() ** 2 - (counts**2).sum()
    total = sums.sum(dim=0)
    return -w0 * (total * total - (sums * sums).sum(dim=0)) / pairs + w1 * text.var(dim=0)


class Refined(TipAdapter):
    """What APE and APE-T share: the choice of channels, by number or by a data set's name."""

    _needs_text = True
    _selections: ClassVar[dict[str, Selection]]
    partial_fit = Absent("the channels are chosen from all shots at once")  # type: ignore[assignment]
    channels: int | str | None
    w0: float
    w1: float

    @classmethod
    def _check_params(cls, where: str, path: Any, params: dict[str, Any]) -> None:
        others = dict(params)
        if isinstance(params.get("channels"), str):
            name = others.pop("channels")
            need(where, path, name in cls._selections, "a known data set as channels", name)
        super()._check_params(where, path, others)

    def _selection(self, width: int) -> Selection:
        """How many channels to keep of `width`, and the weights of their scores."""
        name, given = type(self).__name__, self.channels
        if isinstance(given, str):
            chosen = published.of_dataset(f"{name}.fit", "channels", self._selections, given)
            return chosen._replace(channels=max(1, round(chosen.channels * width / published.WIDTH)))
        kept = max(1, width // 2) if given is None else given
        if isinstance(kept, bool) or not hasattr(kept, "__index__") or not 1 <= kept <= width:
            got, remedy = str(given), "None keeps half, a data set's name the published share"
            raise ValueError(_errors.message(name, "channels", f"lie in 1..{width}", got, remedy))
        return Selection(int(kept), self.w0, self.w1)

    def _choose(self, shots: Tensor, labels: Tensor) -> Tensor:  # [d] int64, rising
        selection = self._selection(self.n_features_in_)
        rows = shots.to("cpu", torch.float64), labels.cpu()
        score = ape_scores(self._text_rows, *rows, selection.w0, selection.w1)
        return score.topk(selection.channels).indices.sort().values

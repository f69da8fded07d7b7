"""What the report says of one folder, as plain numbers: nothing here draws or writes."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import torch
from torch import Tensor

from semobridge_ext.diagnostics import diagnose
from semobridge_ext.diagnostics.diagnosis import Figures
from semobridge_ext.diagnostics.resampling import modality_gap
from semobridge_ext.fewshot.held_out import nearest_mean_accuracy, nearest_text_accuracy
from semobridge_ext.retrieval.metrics import retrieval_metrics

BINS = 100
_SAMPLE = 4000  # rows of the histograms and spectra: 8 million pairs


class Rows(NamedTuple):
    """The labelled rows of one folder, and texts to compare them with where that means something."""

    features: Tensor  # [N, D] unit rows
    labels: Tensor  # [N]
    texts: Tensor | None  # [C, D] unit rows, of the labels 0 .. C-1


def sample(count: int, seed: int) -> Tensor:
    """At most _SAMPLE row numbers, sorted."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[:_SAMPLE].sort().values


def measure(rows: Rows, chosen: Tensor, shots: list[int], seeds: int) -> dict[str, Any]:
    """Retrieval, accuracy and gap of all rows; cosines and spectrum of the chosen ones."""
    x, y, texts = rows
    began = time.perf_counter()
    retrieval: dict[str, Any] = retrieval_metrics(x, x, y, y, same_set=True)
    retrieval["seconds"] = time.perf_counter() - began
    # The report shows no intervals, hence the fewest resamples.
    figures = diagnose(x[chosen], y[chosen], bins=BINS, resamples=2).before
    accuracy = nearest_mean_accuracy(x, y, shots, seeds) if shots else {}
    return {
        "width": x.shape[1],
        "retrieval": retrieval,
        "accuracy": {str(k): values for k, values in accuracy.items()},
        "zero_shot": None if texts is None else nearest_text_accuracy(x, y, texts),
        "cosines": _cosines(figures),
        "gap": None if texts is None else modality_gap(x, texts),
        "spectrum": _spectrum(figures, min(len(chosen), x.shape[1])),
    }


def _cosines(figures: Figures) -> dict[str, Any]:
    """Shares of the cosines of pairs within and between classes by bin, and their overlap."""
    intra, inter = figures.intra, figures.inter  # a pair stands there twice, once from each end
    return {
        "intra": (intra / intra.sum()).tolist(),
        "inter": (inter / inter.sum()).tolist(),
        "pairs": [int(intra.sum()) // 2, int(inter.sum()) // 2],
        "intra_mean": figures["intra-class cosine"].value,
        "inter_mean": figures["inter-class cosine"].value,
        "overlap": figures["overlap"].value,
    }


def _spectrum(figures: Figures, most: int) -> dict[str, Any]:
    """Shares of the variance along the principal directions, of which there are at most `most`."""
    shares = figures.spectrum / figures.spectrum.sum()
    return {"shares": shares[:most].tolist(), "effective_rank": figures["effective rank"].value}

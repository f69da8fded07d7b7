"""The demo's figures: accuracy, differences, modality gap, time. Plain numbers, no printing."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from semobridge_ext.bridging import Bridge
from semobridge_ext.cli.embedded import encode_drawings
from semobridge_ext.clip.class_text import class_text_features
from semobridge_ext.diagnostics.resampling import modality_gap
from semobridge_ext.fewshot import study
from semobridge_ext.fewshot.study_cosines import CosineMethods
from semobridge_ext.runtime.rows import unit_rows

# ours, what it is held against
COMPARISONS = (
    ("bridged_prototypes", "direct"),
    ("bridged_queries", "direct"),
    ("blend", "text"),
    ("blend", "direct"),
    ("blend", "blend_unbridged"),
)
PICTURE_POINTS = 1500
BATCH = 256


class Clip(NamedTuple):
    """The embedded model with what belongs to it."""

    model: Any
    preprocess: Any
    tokenizer: Any


class Cloud(NamedTuple):
    """Points of the modality-gap picture in two principal components."""

    before: Tensor  # [M, 2] image features
    after: Tensor  # [M, 2] the same, bridged
    text: Tensor  # [C, 2]
    centres: Tensor  # [3, 2] means of before, after, text, over all features
    components: tuple[int, int]  # which principal components the axes are, from 0
    share: tuple[float, ...]  # of the variance, per axis


def load_problem(
    clip: Clip, dataset: Any, templates: Sequence[str], progress: study.Progress | None
) -> study.Problem:
    """Encodes what the episodes need of one evaluation set; the validation part is left alone."""
    train, test = dataset.train.nonzero().flatten(), dataset.test.nonzero().flatten()
    images, labels = dataset.images[torch.cat([train, test])], dataset.labels
    features = encode_drawings(clip.model, clip.preprocess, images, progress=progress)
    text = class_text_features(clip.model, dataset.class_names, templates, tokenizer=clip.tokenizer)
    shots, queries = features.split([len(train), len(test)])
    return study.Problem(
        dataset.name, (shots, labels[train]), None, (queries, labels[test]),
        text=text.projected, text_length=text.length,
    )  # fmt: skip


def accuracy_figures(
    problem: study.Problem,
    bridge: Bridge,
    shots: Sequence[int],
    seeds: Sequence[int],
    progress: study.Progress | None = None,
) -> dict[str, Any]:
    """Accuracy of every method and the paired differences, keyed by the number of shots."""
    methods = CosineMethods(problem, bridge)
    right = study.run_episodes(problem, methods, shots=shots, seeds=seeds, progress=progress)
    accuracy: dict[str, dict[str, Any]] = {}
    for method, hits in right.items():
        values = hits.double().mean(dim=2)  # [shots, seeds]
        std = values.std(dim=1) if len(seeds) > 1 else torch.zeros(len(shots))
        accuracy[method] = {
            str(k): {"mean": float(row.mean()), "std": float(s), "values": row.tolist()}
            for k, row, s in zip(shots, values, std, strict=True)
        }
    differences = {
        f"{ours} - {other}": {
            str(k): study.compare(right[ours][i], right[other][i])._asdict() for i, k in enumerate(shots)
        }
        for ours, other in COMPARISONS
    }
    return {"accuracy": accuracy, "differences": differences}


@torch.inference_mode()
def gap_figures(problem: study.Problem, bridge: Bridge) -> tuple[dict[str, Any], Cloud]:
    """Modality gap before and after bridging, how far the bridge turns a feature, and the picture."""
    assert problem.text is not None
    queries, text = problem.test[0], problem.text.double()
    image, bridged = normalize(queries, dim=-1).double(), bridge(queries).double()
    figures = {
        "gap_before": modality_gap(image, text),
        "gap_after": modality_gap(bridged, text),
        "mean_cosine_to_bridged": float((image * bridged).sum(dim=1).mean()),
        "rank": bridge.rank,
        "width": bridge.projector.shape[0],
    }
    # Each modality weighs half, however many more drawings than classes there are; else the gap
    # between the two would not show among the first components.
    centre = (image.mean(dim=0) + text.mean(dim=0)) / 2
    covariance = sum((x - centre).T @ (x - centre) / (2 * len(x)) for x in (image, text))
    values, vectors = torch.linalg.eigh(covariance)
    values, vectors = values.flip(0), vectors.flip(1)
    # The gap need not lie along the first components: across goes the one that holds most of it,
    # upward the first of the others.
    across = ((text.mean(dim=0) - centre) @ vectors).abs().argmax()
    components = (int(across), int(across == 0))
    axes = vectors[:, components]
    # An eigenvector's sign is arbitrary: text lies right, so that pictures of two runs compare.
    axes = axes * torch.where((text.mean(dim=0) - centre) @ axes < 0, -1.0, 1.0)
    share = values[list(components)] / values.sum()
    chosen = torch.linspace(0, len(image) - 1, min(len(image), PICTURE_POINTS)).long()
    means = torch.stack([x.mean(dim=0) for x in (image, bridged, text)])
    before, after, words, centres = (
        (x - centre) @ axes for x in (image[chosen], bridged[chosen], text, means)
    )
    return figures, Cloud(before, after, words, centres, components, tuple(share.tolist()))


@torch.inference_mode()
def speed_figures(bridge: Bridge, features: Tensor) -> dict[str, Any]:
    """Median seconds per image of the bridge and of the eager program, for one image and a batch.

    The two take turns block by block, so that a slow moment of the machine meets both. The eager
    program has its pseudo-inverse ready, as ours has its folded projector.
    """
    weights, inverse = bridge.text_projection, bridge.inverse.detach()
    batch = features[:BATCH]
    result: dict[str, Any] = {"threads": torch.get_num_threads()}
    for name, rows, calls, blocks in (("one", features[:1], 50, 40), ("batch", batch, 1, 100)):

        def native(rows: Tensor = rows) -> Tensor:
            return bridge(rows)

        def eager(rows: Tensor = rows) -> Tensor:
            return unit_rows(unit_rows(rows @ inverse) @ weights)

        worst = float((native() - eager()).abs().max())
        times: dict[str, list[float]] = {"native": [], "eager": []}
        for _ in range(blocks):
            for member, function in (("native", native), ("eager", eager)):
                start = time.perf_counter()
                for _ in range(calls):
                    function()
                times[member].append((time.perf_counter() - start) / (calls * len(rows)))
        medians = {member: statistics.median(values) for member, values in times.items()}
        result[name] = {
            "images": len(rows),
            "native_seconds": medians["native"],
            "eager_seconds": medians["eager"],
            "ratio": medians["native"] / medians["eager"],
            "largest_difference": worst,
        }
    return result

"""The retrieval protocols: Cross-the-Gap and IsoCLIP, among the test images of a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from semobridge_ext.cli import models
from semobridge_ext.cli.named.problem import Prepared
from semobridge_ext.cli.reproduction.published import AT_R, AT_R_THEIRS, MAP, MAP_THEIRS
from semobridge_ext.inversion import oti
from semobridge_ext.linear_maps import IsoCLIP, LinearMap
from semobridge_ext.linear_maps.spectrum import PUBLISHED
from semobridge_ext.retrieval.metrics import retrieval_metrics

SEED = 0  # of the first pseudo-words


def _figures(query: Tensor, gallery: Tensor, labels: Tensor) -> dict[str, float]:
    """Image-to-image retrieval within one set, in both readings."""
    found: dict[str, float] = {}
    for reading, ap, at_r in (("R", MAP, AT_R), ("published", MAP_THEIRS, AT_R_THEIRS)):
        one = retrieval_metrics(query, gallery, labels, labels, same_set=True, at_r=reading)
        found |= {ap: min(1.0, one["mAP"]), at_r: min(1.0, one["mAP@R"])}
    return found


def _pca(encoder: models.Encoder, prepared: Prepared) -> tuple[LinearMap, str] | None:
    """The baseline: directions of the class names' texts, half as many as D or one less than there are."""
    names = prepared.names
    texts = normalize(encoder.texts([f"a photo of {name}" for name in names]).double(), dim=1)
    k = min(texts.shape[1] // 2, len(names) - 1)
    return (LinearMap.pca(texts, k), f"{k} directions") if len(names) > 2 else None


def _isoclip(
    encoder: models.Encoder, prepared: Prepared, key: str | None, validation: tuple[Tensor, Tensor]
) -> tuple[IsoCLIP, str]:
    if key in PUBLISHED:
        iso, how = IsoCLIP.from_clip(encoder.model, published=key), "published"
    else:
        iso, how = IsoCLIP.from_clip(encoder.model).tune(*validation, side="image"), "of the validation part"
    return iso, f"cuts {iso.k_top}/{iso.k_bottom}, {how}"


def records(
    protocol: str,
    prepared: Prepared,
    encoder: models.Encoder,
    key: str | None,
    steps: int,
    inversions: Path,
    quiet: bool,
) -> list[dict[str, Any]]:
    """Every method on the test part of one data set."""
    problem = prepared.problem
    raw, labels = problem.test
    gallery = normalize(raw, dim=1)
    rows: list[tuple[str, dict[str, float], str]] = [("native", _figures(gallery, gallery, labels), "")]
    if protocol == "cross-the-gap":
        generator = torch.Generator().manual_seed(SEED)
        found = oti(
            encoder.model, raw, tokenizer=encoder.tokenizer, steps=steps, generator=generator,
            out=inversions, progress=not quiet,
        )  # fmt: skip
        if found.interrupted:  # its finished chunks are kept, and its features are not all there
            raise KeyboardInterrupt
        queries = normalize(found.features.float().cpu(), dim=1)
        rows.append(("OTI", _figures(queries, gallery, labels), f"{steps} steps"))
    else:
        if problem.before is None or problem.val is None:
            raise NotImplementedError(
                "reproduce: --model must have a linear image projection for isoclip, got another one; take a "
                "ViT of CLIP's"
            )
        iso, told = _isoclip(encoder, prepared, key, (problem.before[1], problem.val[1]))
        mapped = iso.image(problem.before[2])
        rows.append(("IsoCLIP", _figures(mapped, mapped, labels), told))
    if (pca := _pca(encoder, prepared)) is not None:
        mapped = pca[0](gallery)
        rows.append(("PCA of class texts", _figures(mapped, mapped, labels), pca[1]))
    return [
        {"set": problem.name, "method": name, "shots": 0, "seed": 0, "detail": detail, **figures}
        for name, figures, detail in rows
    ]

"""What the papers report, and how they came to it: facts with their sources, and never a figure of our own.

A figure is a percentage for one model, one measure, one method, and one number of shots or the mean over 1,
2, 4, 8 and 16.
"""

from __future__ import annotations

from typing import NamedTuple

MEAN_SHOTS = "mean"
ACCURACY, UNSEEN, SEEN = "accuracy", "accuracy, unseen classes", "accuracy, seen classes"
MAP, MAP_THEIRS = "mAP", "mAP, published reading"
AT_R, AT_R_THEIRS = "mAP@R", "mAP@R, published reading"


class Figure(NamedTuple):
    model: str
    measure: str
    method: str
    shots: int | str  # MEAN_SHOTS; 0 where no shots are drawn
    value: float  # %
    source: str


class Protocol(NamedTuple):
    """How a study is run.

    Args:
        model: open_clip's name and tag of what most of the published figures are of.
        teacher: the same of the larger model that teaches; empty where none does.
        shots: per class, () where none are drawn. seeds: draws of them. steps: of training or inversion.
        measures: what is reported, the first is drawn.
        says: the protocol in a sentence. flaws: what is known of the published programs.
        differs: what is done otherwise here.
    """

    model: tuple[str, str]
    teacher: tuple[str, str] | tuple[()]
    shots: tuple[int, ...]
    seeds: int
    steps: int | None
    measures: tuple[str, ...]
    says: str
    flaws: tuple[str, ...]
    differs: tuple[str, ...]


_SEMO, _GAP, _ISO = "arXiv 2509.26036", "arXiv 2502.04263", "arXiv 2603.19862"
_KDPL = "arXiv 2407.03056"
_ELEVEN = "mean of 11 data sets"


def _over_shots(model: str, method: str, values: tuple[float, ...], source: str) -> list[Figure]:
    shots = (1, 2, 4, 8, 16)
    return [Figure(model, ACCURACY, method, k, v, source) for k, v in zip(shots, values, strict=True)]


def _retrieval(model: str, values: dict[str, float], source: str) -> list[Figure]:
    return [Figure(model, MAP_THEIRS, method, 0, value, source) for method, value in values.items()]


_SEMO_MEANS = {
    "SeMoBridge-T": 78.144, "SeMoBridge": 75.404, "APE": 75.328, "Tip-Adapter": 73.434, "zero-shot": 65.52,
}  # fmt: skip
_SEMO_FIGURES = [
    Figure("ViT-B/16", ACCURACY, method, MEAN_SHOTS, value, f"{_SEMO}, {_ELEVEN}")
    for method, value in _SEMO_MEANS.items()
] + _over_shots("ViT-B/16", "SeMoBridge-T", (74.01, 76.20, 78.21, 80.10, 82.20), f"{_SEMO}, {_ELEVEN}")

FIGURES: dict[str, list[Figure]] = {
    "semobridge": _SEMO_FIGURES,
    "tip-adapter": [f for f in _SEMO_FIGURES if f.method in ("Tip-Adapter", "zero-shot")],
    "gda": _over_shots("RN50", "GDA", (62.19, 66.19, 69.77, 73.31, 76.05), f"ICLR 2024, {_ELEVEN}"),
    "cross-the-gap": [
        *_retrieval("ViT-B/32", {"native": 41.6, "OTI": 42.9}, f"{_GAP}, mean of 13 data sets"),
        *_retrieval("ViT-L/14", {"native": 53.7, "OTI": 57.0}, f"{_GAP}, mean of 13 data sets"),
        *_retrieval("SigLIP ViT-B/16", {"native": 57.2, "OTI": 60.0}, f"{_GAP}, mean of 13 data sets"),
    ],
    "isoclip": [
        *_retrieval("ViT-B/32", {"native": 40.9, "OTI": 43.0, "IsoCLIP": 45.1}, f"{_ISO}, mean"),
        *_retrieval("ViT-B/16", {"native": 46.3, "OTI": 49.4, "IsoCLIP": 52.8}, f"{_ISO}, mean"),
        *_retrieval("ViT-L/14", {"native": 54.3, "OTI": 57.7, "IsoCLIP": 60.7}, f"{_ISO}, mean"),
    ],
    "kdpl": [
        Figure(model, UNSEEN, method, 16, value, f"{_KDPL}, mean")
        for model, values in {"RN50": (60.82, 63.80), "ViT-B/32": (64.52, 66.35)}.items()
        for method, value in zip(("CoOp", "KDPL"), values, strict=True)
    ],
}
_FEW = (
    "shots are drawn by NumPy's RandomState, as many as CoOp draws from the training part, of other images",
    "UCF101, one of the eleven sets, is made of videos and is not read here",
)
_READING = (
    "their mAP@R looks at R + 1 places where query and gallery set are one: up to 2.6 points too high",
    "a query without relevant items counts as AP = 0",
)
_DISPUTED = (
    "PCA on the texts of the class names beats OTI, and on ViT-B/32 IsoCLIP, in an independent study "
    "(arXiv 2603.16100): it stands beside them here"
)
PROTOCOLS: dict[str, Protocol] = {
    "semobridge": Protocol(
        ("ViT-B-16-quickgelu", "openai"), (), (1, 2, 4, 8, 16), 3, None, (ACCURACY,),
        "K shots a class; blend, α and β are searched on min(K, 4) validation images a class; one test",
        ("SeMoBridge-T's program keeps the best validation step, and tests the prototypes of the last step "
         "with the bridge of the best",),
        ("the bridge and the prototypes of one step are tested", *_FEW),
    ),
    "tip-adapter": Protocol(
        ("ViT-B-16-quickgelu", "openai"), (), (1, 2, 4, 8, 16), 3, None, (ACCURACY,),
        "K shots a class; α and β of the authors' grid, on min(K, 4) validation images a class; one test",
        ("the authors searched ImageNet on the images that they tested on",),
        ("every set is searched on validation images", "the published mean is the one of arXiv 2509.26036",
         *_FEW),
    ),
    "gda": Protocol(
        ("RN50-quickgelu", "openai"), (), (1, 2, 4, 8, 16), 3, None, (ACCURACY,),
        "K shots a class; α from 1e-4 to 1e2 on min(K, 4) validation images a class; one test", (), _FEW,
    ),
    "cross-the-gap": Protocol(
        ("ViT-B-32-quickgelu", "openai"), (), (), 1, 150, (MAP_THEIRS, MAP, AT_R_THEIRS, AT_R),
        "every test image is a query to all others: its OTI feature, against native features",
        (*_READING, _DISPUTED), ("both readings are given", "the data sets are those named above"),
    ),
    "isoclip": Protocol(
        ("ViT-B-32-quickgelu", "openai"), (), (), 1, None, (MAP_THEIRS, MAP, AT_R_THEIRS, AT_R),
        "every test image is a query to all others; the published cuts for the weights that they were chosen "
        "on, else those of the best mAP on the validation part", (*_READING, _DISPUTED),
        ("both readings are given", "the data sets are those named above",
         "OTI is run by cross-the-gap alone"),
    ),
    "kdpl": Protocol(
        ("ViT-B-32-quickgelu", "openai"), ("ViT-H-14-quickgelu", "dfn5b"), (16,), 3, 50, (UNSEEN, SEEN),
        "16 shots of each of the first half of the classes train a context; it is tested on the others. "
        "Nothing is tuned",
        ("the teacher's features are computed anew in every epoch",),
        ("features are of the centre crop, once, so that no view changes",
         "domain generalisation, from ImageNet to its variants, is not run", *_FEW),
    ),
}  # fmt: skip
_MODELS = {
    "RN50": "RN50", "ViT-B-32": "ViT-B/32", "ViT-B-16": "ViT-B/16", "ViT-L-14": "ViT-L/14",
}  # fmt: skip


def model_key(name: str, pretrained: str | None) -> str | None:
    """The papers' name of a model with the weights that they used; None for every other one.

    Under the plain name open_clip computes GELU where these weights were trained with QuickGELU.
    """
    if pretrained == "openai" and name.endswith("-quickgelu"):
        return _MODELS.get(name.removesuffix("-quickgelu"))
    if pretrained == "webli" and name == "ViT-B-16-SigLIP":
        return "SigLIP ViT-B/16"
    return None


def figure_of(protocol: str, model: str | None, measure: str, method: str, shots: int | str) -> Figure | None:
    """The published figure of a row, None where there is none."""
    for figure in FIGURES[protocol]:
        if figure[:4] == (model, measure, method, shots):
            return figure
    return None

"""What the steps of the command line hand back, to the command and to Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from semobridge_ext.discovery import GCDAccuracy, NumClassesEstimate
from semobridge_ext.inversion.spec import Inversion


class Extracted(NamedTuple):
    """A finished folder of ``extract``."""

    path: Path
    records: int  # rows in the shards
    corrupt: int  # inputs that could not be decoded, listed in ``path/corrupt.tsv``
    inputs: int  # records and corrupt ones
    ignored: int  # other files of a folder
    resumed_at: int  # inputs that were done when the last run began
    seconds: float  # of the last run
    finished_already: bool  # this call found nothing left to do
    without_caption: int = 0  # of the corrupt ones, where captions were asked for

    @classmethod
    def of_summary(cls, path: Path, summary: dict[str, Any], already: bool) -> Extracted:
        names = ("rows", "corrupt", "inputs", "ignored", "resumed_at")
        rows, lost, inputs, ignored, first = (int(summary.get(name, 0)) for name in names)
        seconds = float(summary.get("seconds", 0.0))
        bare = int(summary.get("without_caption", 0))
        return cls(path, rows, lost, inputs, ignored, first, seconds, already, bare)


class Mapped(NamedTuple):
    """A finished folder of ``map``."""

    path: Path
    records: int  # rows in the shards
    mapping: str  # its name
    options: dict[str, Any]  # what the mapping says of itself
    resumed_at: int  # shards that were done when the last run began
    seconds: float  # of the last run
    finished_already: bool  # this call found nothing left to do

    @classmethod
    def of_summary(
        cls, path: Path, summary: dict[str, Any], mapping: str, facts: dict[str, Any], already: bool
    ) -> Mapped:
        rows, first = int(summary.get("rows", 0)), int(summary.get("resumed_at", 0))
        return cls(path, rows, mapping, facts, first, float(summary.get("seconds", 0.0)), already)


class Inverted(NamedTuple):
    """A finished file, or table, of ``invert``."""

    path: Path
    records: int  # samples that were inverted
    inversion: Inversion  # what `oti` and `ovi` return: tokens, features, losses ..
    seconds: float  # of the inversion, the fit of a map not counted


class Found(NamedTuple):
    """A class of ``discover`` that has an image."""

    cluster: int  # its place in ``classes_``
    name: str  # of an old class its label, of a new one a number and its strongest concepts
    old: bool
    concepts: list[str]  # what tells its images from the others, the strongest first
    images: list[int]  # rows of the table, the surest first
    labelled: int  # of its images


class Discovered(NamedTuple):
    """A finished folder of ``discover``."""

    path: Path
    assignments: list[dict[str, Any]]  # N: image, cluster, name, kind, label (None: unlabelled), probability
    classes: list[Found]  # those that have an image, the old ones first
    num_classes: int  # old and new ones, with or without an image
    estimate: NumClassesEstimate | None  # where the count is one
    accuracy: GCDAccuracy | None  # of an embedded set, whose classes are known
    facts: list[str]  # what the report begins with
    written: list[str]  # names of the files

    @property
    def new(self) -> list[Found]:
        """The new classes that have an image."""
        return [one for one in self.classes if not one.old]


class ShardRows(NamedTuple):
    """Rows of shards and what they belong to."""

    features: Tensor  # [N, D]
    columns: dict[str, list[Any]]  # N values each: image_path, and label, caption, .. where known

    @property
    def records(self) -> list[dict[str, Any]]:
        """The columns as one dict for each row."""
        names = list(self.columns)
        return [dict(zip(names, values, strict=True)) for values in zip(*self.columns.values(), strict=True)]


class ShardHits(NamedTuple):
    """The nearest rows of shards to N queries."""

    scores: Tensor  # [N, k] float32 cosines, the largest first
    indices: Tensor  # [N, k] int64, rows of the shards in their order
    records: list[list[dict[str, Any]]]  # N lists of k: the metadata of each hit

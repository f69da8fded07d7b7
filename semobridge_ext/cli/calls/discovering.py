"""`discover_shards`: what the command `discover` does, from Python."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

from semobridge_ext import _errors
from semobridge_ext.cli.calls.as_files import labelled, listed
from semobridge_ext.cli.calls.words import Call
from semobridge_ext.cli.calls.writing import EXTRACT
from semobridge_ext.cli.commands import discover as discover_command
from semobridge_ext.cli.discovery_problem import PICTO
from semobridge_ext.cli.results import Discovered
from semobridge_ext.cli.tables import holds_features

DISCOVER = Call("discover_shards", "discover", discover_command, {"input": "source", "dataset": "source"}, {})


def discover_shards(
    source: Any,
    out: Any,
    *,
    classes: int | str,
    max_classes: int | None = None,
    labels: Any = None,
    old: Any = None,
    model: str | None = None,
    pretrained: Any = None,
    device: str = "cpu",
    workers: int = 0,
    root: Any = None,
    download: bool = False,
    split: Any = None,
    concepts: Any = None,
    template: str = "a photo of {}",
    teacher: Any = None,
    paper: bool = False,
    epochs: int | None = None,
    seed: int = 0,
    hits: int = 8,
    html: bool = False,
    progress: bool = False,
) -> Discovered:
    """Known and new classes among images, as ``semobridge-ext discover`` finds them, resumable.

    Generalized category discovery: the spectral filter, then `SpectralGCD` on features. The same call goes on
    after a kill or Ctrl-C, and refuses an ``out`` of other data or settings. `SpectralFilter` and
    `SpectralGCD` take features in memory, with every setting.

    Args:
        source: shards as `extract` writes them, a .parquet file or a folder of them, a .lance data set; or
            images, as `extract` takes them, which are extracted into ``out/features``. "picto:arrows" (icons,
            emoji, flags, logos): embedded drawings, of which half of the classes are old.
        out: the folder to write; made if absent; not below ``source``.
        classes: how many there are, old and new; "auto" estimates it (`estimate_num_classes`).
        max_classes: of "auto", the largest count that is tried; None: ten times the old classes.
        labels: a mapping from the paths of images to their labels, or a CSV with the columns image and label,
            paths relative to the file. Images that it does not name are unlabelled.
        old: in its place, the sub-folders whose names are labels.
        model: as `extract` has it; needed for images, and for shards that do not name it themselves.
        pretrained: open_clip's tag or a checkpoint file of that model.
        device: where the model runs: "cpu", "cuda", "cuda:1" ..
        workers: processes that decode; 0 decodes in this one.
        root: the folder in which data sets by name lie.
        download: fetches a data set that is not there into ``root``.
        split: a split file of CoOp's form.
        concepts: the dictionary: a list of names, or a file with one a line or in the last column of a CSV.
            None: the class names of the embedded sets, which are drawings of things.
        template: of the prompts.
        teacher: shards of the same images by a larger CLIP; None: the student's own.
        paper: the paper's sizes and 200 epochs, in place of the guide's.
        epochs: in place of either.
        seed: of the training, and of the estimate.
        hits: images a class in the sheet.
        html: the sheet as sheet.html, not sheet.png.
        progress: bars on stderr.

    Returns:
        A named tuple: ``path``; ``assignments``, N dicts as assignments.csv has them (image, cluster, name,
        kind, label, probability); ``classes`` that have an image, each a named tuple of ``cluster``,
        ``name``, ``old``, ``concepts``, ``images`` (rows of the table, the surest first) and ``labelled``,
        how many of these are; ``new``, the new ones among them; ``num_classes``, the ``estimate`` where it
        is one, ``accuracy`` of an embedded set, ``facts`` that the report begins with, and the files
        ``written``, beside model.safetensors, which ``SpectralGCD.load`` reads.

    Raises:
        ValueError: no labelled image, a label of a class that is not there, a count below the old classes, a
            teacher without some of the images, an ``out`` of another run or in use by one. TypeError: an
            argument of another kind. FileNotFoundError: no such source. RuntimeError: a model that does not
            load. ImportError: pyarrow or SciPy is missing.

    Numerics: unit rows and training in float32, the filter's sums in float64; the same bits as the command.

    Memory: the rows, those of the teacher and the features of the concepts in float32; the filter's Gram
        matrix, at most N² float64.

    Example:
        >>> import tempfile, torch, semobridge_ext as sb
        >>> import pyarrow as pa, pyarrow.parquet as pq
        >>> rows = torch.eye(3, 192).repeat(8, 1).tolist()
        >>> table = pa.table({"features": rows, "label": list("abc" * 8)})
        >>> table = table.append_column("image_path", pa.array([f"{i}.png" for i in range(24)]))
        >>> with tempfile.TemporaryDirectory() as home:
        ...     pq.write_table(table, f"{home}/x.parquet")
        ...     words = {"concepts": ["star", "sun", "moon"], "model": "picto", "epochs": 2, "html": True}
        ...     found = sb.discover_shards(
        ...         f"{home}/x.parquet", f"{home}/out", classes=3, old=["a", "b"], **words
        ...     )
        >>> len(found.assignments), found.num_classes, found.assignments[0]["label"]
        (24, 3, 'a')
    """
    with tempfile.TemporaryDirectory(prefix="semobridge-ext-") as place:
        names = listed("discover_shards", "concepts", concepts, Path(place))
        table = labelled("discover_shards", "labels", labels, Path(place))
        args = DISCOVER.arguments(
            progress, input=source, out=out, classes=classes, max_classes=max_classes, labels=table, old=old,
            model=model, pretrained=pretrained, device=device, workers=workers, root=root, download=download,
            split=split, concepts=names, template=template, teacher=teacher, paper=paper, epochs=epochs,
            seed=seed, hits=hits, html=html,
        )  # fmt: skip
        if model is None and _extracts(str(args.input)):
            contract, remedy = "be a name where images are extracted", "pass 'picto' for the embedded CLIP"
            raise TypeError(_errors.message("discover_shards", "model", contract, model, remedy))
        shown = {str(file): "the labels" for file in (table,) if file is not labels}
        shown |= {str(file): "the concepts" for file in (names,) if file is not concepts}
        with EXTRACT.own_words(), DISCOVER.own_words(shown):
            return discover_command.perform(args, logging.getLogger("semobridge_ext").info)


def _extracts(source: str) -> bool:
    """Whether features are made; a place that does not exist is told of where it is read."""
    if source.startswith(PICTO) or holds_features(source):
        return False
    return ":" in source or Path(source).exists()

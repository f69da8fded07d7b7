"""export_gallery: a mapped gallery for another engine, with the folded map that its queries pass."""

from __future__ import annotations

import os
import time
from typing import Any

from semobridge_ext import _errors, _files, _numbers
from semobridge_ext._version import __version__
from semobridge_ext.handover import faiss_index, fbin, lance_dataset, milvus_parquet, query_map
from semobridge_ext.handover.folder import ExportFolder
from semobridge_ext.handover.rows import Rows
from semobridge_ext.handover.sources import NAME, Held, Shards, Source
from semobridge_ext.handover.task import Task, Written
from semobridge_ext.retrieval import Gallery

FORMATS = ("faiss", "faiss:FACTORY", "fbin", "f16bin", "lance", "milvus-parquet")


def _split(given: Any) -> tuple[str, str]:
    """The format, and FAISS's factory string."""
    kind, _, factory = str(given).partition(":")
    known = {name.partition(":")[0] for name in FORMATS}
    if not isinstance(given, str) or kind not in known or (":" in given and (kind != "faiss" or not factory)):
        contract, remedy = f"be one of {', '.join(FORMATS)}", "pass one of them"
        raise ValueError(_errors.message(NAME, "format", contract, _errors.describe(given), remedy))
    return kind, factory


def _check_counts(**given: Any) -> None:
    for name, value in given.items():
        least = 0 if name == "seed" else 1
        if value is not None and (not _numbers.is_whole(value) or value < least):
            contract, remedy = f"be a whole number from {least} up", "leave it out for the default"
            raise ValueError(_errors.message(NAME, name, contract, value, remedy))


def _source(gallery: Any, metadata: Any) -> Source:
    if isinstance(gallery, (str, os.PathLike)):
        if not isinstance(metadata, bool):
            remedy = "pass True: shards have their own"
            raise TypeError(
                _errors.message(NAME, "metadata", "be True or False for shards", metadata, remedy)
            )
        return Shards(_files.place(gallery, NAME))
    return Held(gallery, None if metadata is None or metadata is False else metadata)


def _write(kind: str, task: Task) -> Written:
    if kind == "faiss":
        return faiss_index.write(task)
    if kind == "lance":
        return lance_dataset.write(task)
    if kind == "milvus-parquet":
        return milvus_parquet.write(task)
    return fbin.write(task, kind)


def export_gallery(
    gallery: Any,  # path of shards, a Gallery, or [G, D]
    out: Any,
    *,
    format: str = "faiss",
    mapping: Any = None,
    ids: Any = None,
    metadata: Any = False,
    train: int | None = None,
    seed: int = 0,
    file_rows: int | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Writes a mapped gallery for another engine, and beside it the one matrix that a query needs.

    A query is ``q = norm(x W)`` (``norm(x W + b)`` where the map is affine) in every format: W is the folded
    map, and ``out/README.txt`` has the lines for it, and for the search, that use the engine alone.

    Args:
        gallery: the path of a folder of shards (``semobridge-ext extract`` or ``map``, or clip-retrieval), of
            a Parquet file, a folder of such files or a Lance data set with a column of vectors; a `Gallery`,
            whose ids go along; or rows [G, D] of any float dtype, a tensor or an array that may be
            memory-mapped.
        out: the folder to write; made if absent.
        format: "faiss": an exact IndexFlatIP. "faiss:FACTORY": what FAISS's factory makes of the string, such
            as "faiss:IVF1024,Flat", trained on a sample of rows. "fbin", "f16bin": float32 or float16 rows
            behind two uint32, as cuVS reads them. "lance": a data set that LanceDB opens as a table.
            "milvus-parquet": files for Milvus's bulk import.
        mapping: a `Bridge`, `IsoCLIP` or `LinearMap`, or the file of one; for shards also "bridge" or "pca".
            None for rows that need none, and for shards of ``map``, whose own is written.
        ids: a column of the metadata that holds whole numbers, or G of them; None: row numbers.
        metadata: for shards True takes their records along; for rows a dict of columns or a pyarrow.Table.
        train: rows that an index is trained on; None: 50 for each list, at least 50 000.
        seed: of the sample for training, and of the rows whose recall is measured.
        file_rows: rows of a Parquet file; None: a gibibyte of vectors.
        progress: shows a bar.

    Returns:
        What ``out/summary.json`` holds: "rows", "width", "seconds", "files" with their sizes; of a trained
        index "recall" by the number of lists that are visited, and "nprobe", the number that is stored: the
        least power of two with a recall of 0.95.

    Raises:
        ImportError: the engine's library is missing; it names the extra. TypeError: kind or dtype.
        ValueError: NaN or infinity in a row (named), no rows, ids that repeat, a mapping that does not fit,
            a factory string that FAISS refuses, a folder of another export.

    Numerics: rows are mapped in float32 (the map folded in float64) and have unit length; "f16bin" rounds
        them once. Zero rows stay zero. Recall@10 is that of 200 gallery rows against `topk`, themselves left
        out.

    Memory: a block of 16 384 rows and the metadata of one shard, 8 bytes a row for ids; for FAISS also its
        index, as it is built in memory, and the training rows.

    An interrupted run leaves no summary.json, and the same call goes on (whole Parquet files stay) or
    begins anew; a file is written under another name and renamed. A finished folder is left as it is.

    Example:
        >>> import tempfile, torch, semobridge_ext as sb
        >>> rows, shift = torch.randn(50, 8), sb.LinearMap.centering(torch.full((8,), 0.5))
        >>> with tempfile.TemporaryDirectory() as out:
        ...     found = sb.export_gallery(rows, out, format="fbin", mapping=shift)
        >>> found["rows"], found["files"]["gallery.fbin"]
        (50, 1608)
    """
    from tqdm import tqdm

    kind, factory = _split(format)
    _check_counts(train=train, seed=seed, file_rows=file_rows)
    if isinstance(gallery, Gallery):
        held = gallery._held  # rows and ids of one moment
        gallery, ids = held.rows(), held.ids if ids is None else ids
    folder, source = ExportFolder(out), _source(gallery, metadata)
    if not source.count or not source.width:
        raise ValueError(_errors.message(NAME, "gallery", "hold rows", "none", "extract some images"))
    chosen = query_map.choose(mapping, source)
    records = metadata is not None and metadata is not False
    rows = Rows(source, chosen.rows, ids, records)
    linear = chosen.linear or query_map.identity(rows.width)
    settings = {
        "command": "export", "format": format, "rows": rows.count, "width": rows.width,
        "mapping": chosen.name, "map": [t for s in linear.steps for t in (s.matrix, s.offset)],
        "texts": chosen.texts, "metadata": records, "ids": ids if isinstance(ids, str) else rows.ids,
        "train": train, "seed": seed, "file_rows": file_rows, **source.facts(),
    }  # fmt: skip
    with folder.claim():
        if summary := folder.begin(settings):
            return {**summary, "finished_already": True}
        began = time.perf_counter()
        files, lines = query_map.write(folder.path, linear, chosen.texts)
        bar = tqdm(total=rows.count, unit="row", desc="export", disable=None if progress else True)
        with bar:
            task = Task(folder.path, rows, factory, train, seed, file_rows, bar.update)
            written = _write(kind, task)
        facts = {
            "rows": rows.count, "width": rows.width, "seconds": time.perf_counter() - began,
            "format": format, "mapping": chosen.name, **written.facts,
        }  # fmt: skip
        readme = _readme(rows, format, chosen.name, lines, written)
        return folder.finish([*files, *written.files], readme, facts)


def _readme(rows: Rows, kind: str, mapping: str, lines: list[str], written: Written) -> str:
    head = (
        f"A gallery of {rows.count} unit rows of width {rows.width} as {kind}, exported by semobridge-ext "
        f"{__version__}; mapping: {mapping}."
    )
    return "\n".join([head, "", *lines, "", *written.lines, ""])

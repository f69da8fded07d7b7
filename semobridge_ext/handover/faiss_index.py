"""FAISS: a flat index of inner products, or whatever its factory makes, trained and measured here."""

from __future__ import annotations

from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from semobridge_ext import _errors, _files
from semobridge_ext.handover.sources import NAME
from semobridge_ext.handover.task import Task, Written, table_file
from semobridge_ext.retrieval.streamed import topk_over

_K = 10
_QUERIES = 200  # rows that are asked for their neighbours
_PER_LIST = 50  # training rows; FAISS itself complains below 39
_LEAST = 50_000
_ENOUGH = 0.95  # of the recall: the stored nprobe is the least of its kind that reaches it


def _library() -> Any:
    try:
        return import_module("faiss")
    except ImportError as error:
        raise ImportError(
            f"{NAME}: faiss must be installed to write its index, got none ({error}); "
            "pip install 'semobridge-ext[export]'"
        ) from error


def _made(faiss: Any, width: int, factory: str) -> Any:
    if not factory:
        return faiss.IndexFlatIP(width)
    remedy = "see FAISS's wiki, for example faiss:IVF1024,Flat or faiss:IVF4096,PQ64"
    try:
        index = faiss.index_factory(width, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        told = " ".join(str(error).split())[-160:]
        contract = f"name an index of width {width} for FAISS"
        raise ValueError(
            _errors.message(NAME, "format", contract, f"'{factory}' ({told})", remedy)
        ) from error
    if index.metric_type != faiss.METRIC_INNER_PRODUCT:
        got = f"'{factory}', which measures something else"
        raise ValueError(_errors.message(NAME, "format", "rank by inner product", got, remedy))
    return index


def _sampled(rng: np.random.Generator, count: int, n: int) -> np.ndarray:  # ascending
    return np.sort(rng.choice(count, min(n, count), replace=False, shuffle=False))


def _train(index: Any, ivf: Any, task: Task, rng: np.random.Generator) -> int:
    """Teaches the index; the number of rows that it saw."""
    if index.is_trained:
        return 0
    lists = 0 if ivf is None else int(ivf.nlist)
    wanted = max(_PER_LIST * lists, _LEAST) if task.train is None else task.train
    rows = task.rows.take(_sampled(rng, task.rows.count, wanted))
    if len(rows) < lists:
        got = f"{lists} lists for {len(rows)} rows"
        remedy = "ask for fewer lists, or train on more rows"
        raise ValueError(_errors.message(NAME, "format", "have at most a list for each row", got, remedy))
    try:
        index.train(rows.numpy())
    except RuntimeError as error:
        told = " ".join(str(error).split())[-160:]
        raise ValueError(
            _errors.message(NAME, "format", f"be trained by {len(rows)} rows", told, "choose another index")
        ) from error
    return len(rows)


def _store(faiss: Any, index: Any, path: Path) -> None:
    """By way of our own file: FAISS leaves half an index behind where a disk is full."""
    failed: list[BaseException] = []
    with _files.replaced(path) as file:

        def write(data: bytes) -> int:
            try:
                if not failed:
                    file.write(data)
            except OSError as error:  # FAISS would print it and raise another
                failed.append(error)
            return len(data)

        writer = faiss.BufferedIOWriter(faiss.PyCallbackIOWriter(write), 1 << 20)
        faiss.write_index(index, writer)
        del writer  # it hands over its last bytes when it goes
        if failed:
            raise failed[0]


# -- recall --------------------------------------------------------------------------------------------


def _neighbours(index: Any, queries: np.ndarray, own: np.ndarray, k: int) -> np.ndarray:  # [N, k]
    """Of gallery rows, without themselves."""
    found = index.search(queries, k + 1)[1]
    kept = found != own[:, None]
    kept[kept.all(axis=1), -1] = False  # it did not find itself
    return found[kept].reshape(len(own), k)


def _exact(task: Task, queries: Tensor, own: np.ndarray, k: int) -> np.ndarray:  # [N, k] ids
    blocks = (part.rows for part in task.rows.parts(records=False))
    rows = topk_over(queries, blocks, k + 1)[1].numpy()
    kept = rows != own[:, None]
    kept[kept.all(axis=1), -1] = False  # an equal row of a lower number took its place
    rows = rows[kept].reshape(len(own), k)
    return rows if task.rows.ids is None else task.rows.ids.numpy()[rows]


def _recall(found: np.ndarray, wanted: np.ndarray) -> float:
    hits = [len(set(f) & set(w)) for f, w in zip(found.tolist(), wanted.tolist(), strict=True)]
    return sum(hits) / wanted.size


def _measure(index: Any, ivf: Any, task: Task, rng: np.random.Generator) -> dict[str, Any]:
    """Recall@10 of gallery rows, by the lists that are visited; sets the number that suffices."""
    k = min(_K, task.rows.count - 1)
    if k < 1:
        return {}
    own = _sampled(rng, task.rows.count, _QUERIES)
    queries = task.rows.take(own)
    wanted = _exact(task, queries, own, k)
    mine = own if task.rows.ids is None else task.rows.ids.numpy()[own]
    recall: dict[str, float] = {}
    steps = [None] if ivf is None else [2**i for i in range(32) if 2**i < ivf.nlist] + [ivf.nlist]
    for lists in steps:
        if lists is not None:
            ivf.nprobe = lists
        found = _recall(_neighbours(index, queries.numpy(), mine, k), wanted)
        recall["" if lists is None else str(lists)] = found
        if found >= _ENOUGH:
            break
    facts = {"recall_k": k, "recall_queries": len(own), "recall": recall}
    return facts if ivf is None else {**facts, "nprobe": int(ivf.nprobe), "lists": int(ivf.nlist)}


# -- the writer ----------------------------------------------------------------------------------------


def write(task: Task) -> Written:
    """index.faiss, and metadata.parquet where records go along."""
    faiss = _library()
    rng = np.random.default_rng(task.seed)
    inner = _made(faiss, task.rows.width, task.factory)
    ivf = faiss.try_extract_index_ivf(inner) if task.factory else None
    trained = _train(inner, ivf, task, rng)
    index = inner if task.rows.ids is None else faiss.IndexIDMap2(inner)
    written = Written(["index.faiss"], [], {"trained_on": trained} if trained else {})
    with ExitStack() as stack:
        records = None
        if task.rows.records:
            written.files.append("metadata.parquet")
            records = stack.enter_context(table_file(task.out / "metadata.parquet", task.rows.schema()))
        for part in task.rows.parts():
            if task.rows.ids is None:
                index.add(part.rows.numpy())
            else:
                index.add_with_ids(part.rows.numpy(), part.ids)
            if records is not None:
                records(part.table)
            task.advance(len(part.rows))
        if task.factory:
            written.facts |= _measure(index, ivf, task, rng)
        _store(faiss, index, task.out / "index.faiss")
    written.lines = _lines(task, written.facts)
    return written


def _lines(task: Task, facts: dict[str, Any]) -> list[str]:
    kind = task.factory or "IndexFlatIP, exact"
    found = "ids" if task.rows.ids is not None else "row numbers"
    lines = [
        f"FAISS ({kind}), inner products of unit rows: cosines.",
        "    import faiss",
        '    index = faiss.read_index("index.faiss")',
        f"    scores, found = index.search(q.astype(numpy.float32), 10)  # found: {found}",
    ]
    if "recall" in facts:
        lines.append(
            f"Recall@{facts['recall_k']} of {facts['recall_queries']} rows of the gallery: {told(facts)}."
        )
    if "nprobe" in facts:
        lines += [
            "More lists find more: the number is stored in the index, and set anew by",
            "    faiss.extract_index_ivf(index).nprobe = 64",
        ]
    return lines


def told(facts: dict[str, Any]) -> str:
    """The recall in words."""
    recall = facts["recall"]
    if "nprobe" not in facts:
        return f"{recall['']:.3f}"
    by = ", ".join(f"{value:.3f} at nprobe {lists}" for lists, value in recall.items())
    return f"{by} of {facts['lists']} lists"

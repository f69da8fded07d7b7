"""`read_shards`, `retrieve` and `search`: shards of features in Python, and the commands over them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from semobridge_ext import _arrays, _errors
from semobridge_ext.cli.calls.words import Call
from semobridge_ext.cli.commands import retrieve as retrieve_command
from semobridge_ext.cli.commands import search as search_command
from semobridge_ext.cli.galleries import open_folder
from semobridge_ext.cli.images import PIXELS
from semobridge_ext.cli.results import ShardHits, ShardRows
from semobridge_ext.cli.shards import Folder
from semobridge_ext.cli.tables import open_features

RETRIEVE = Call("retrieve", "retrieve", retrieve_command, {}, {})
SEARCH = Call("search", "search", search_command, {}, {})
READ = Call("read_shards", "read_shards", search_command, {}, {})  # no command: it takes the same SHARDS


def read_shards(shards: Any, *, normalize: bool = False) -> ShardRows:
    """Features of shards in one tensor, and their metadata in lists.

    Args:
        shards: a folder of `extract`, `map_shards` or clip-retrieval, a .parquet file or a folder of them, or
            a .lance data set. ``folder/text_emb`` names the texts of a folder that holds images too.
        normalize: gives unit rows in place of the stored ones.

    Returns:
        A named tuple: ``features`` [N, D] in the stored dtype (float16 or float32; float32 where shards
        differ, and with ``normalize``) on the CPU; ``columns``, a list of N values by the name of each column
        (image_path, and label, caption .. where known; None where a shard has no such column). ``.records``
        is the same as N dicts.

    Raises:
        ValueError: an unfinished folder, shards of several widths, a damaged file. TypeError: no path.
            FileNotFoundError: no shards. ImportError: pyarrow, or for Lance pylance, is missing.

    Numerics: the stored values, to the bit; lengths in float32. A zero row stays zero.

    Memory: O(N·D), and the metadata as Python objects.

    Example:
        >>> import tempfile, torch, semobridge_ext as sb
        >>> import pyarrow as pa, pyarrow.parquet as pq
        >>> table = pa.table({"features": torch.eye(2).tolist(), "label": ["a", "b"]})
        >>> with tempfile.TemporaryDirectory() as home:
        ...     pq.write_table(table, f"{home}/rows.parquet")
        ...     found = sb.read_shards(f"{home}/rows.parquet")
        >>> found.features.shape, found.columns["label"]
        (torch.Size([2, 2]), ['a', 'b'])
    """
    args = READ.arguments(shards=shards)
    with READ.own_words():
        folder = open_folder(args.shards, "read_shards")
        indices = folder.shards()
        folder.check_finished()
        for index in indices:
            folder.check_rows(index)
        return ShardRows(folder.load() if normalize else _stored(folder, indices), _columns(folder, indices))


def _stored(folder: Folder, indices: list[int]) -> Tensor:  # [N, D]
    """All rows, as they are stored; each shard is read once."""
    # Shapes alone: pages of a mapped file stay in memory for as long as its rows are held.
    shapes = [shape for index in indices if all(shape := folder.shape(index))]
    found, at = torch.empty(0, 0), 0
    for index in indices:
        rows = folder.features(index)
        if not rows.numel():
            continue
        if at == 0:
            found = torch.empty(sum(count for count, _ in shapes), rows.shape[1], dtype=rows.dtype)
        elif rows.dtype is not found.dtype:
            found = found.float()
        found[at : at + len(rows)] = rows
        at += len(rows)
    return found


def _columns(folder: Folder, indices: list[int]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    count = 0
    for index in indices:
        part = folder.table(index).to_pydict()
        size = folder.shape(index)[0]
        for name in part:
            found.setdefault(name, [None] * count)
        for name, values in found.items():
            values += part.get(name, [None] * size)
        count += size
    return found


def retrieve(
    shards: Any,
    *,
    queries: Any = None,
    label: str = "label",
    together: bool = False,
    pairs: Any = None,
    key: str | None = None,
    recall_at: Any = (1, 5, 10),
) -> dict[str, Any]:
    """Retrieval metrics of shards with labels, as ``semobridge-ext retrieve`` prints them.

    Every image is a query and all others are the gallery, ranked by cosine; images of the same label are
    relevant. `retrieval_metrics` is the same for features in memory, and says what the metrics are.

    Args:
        shards: a folder of `extract`, `map_shards` or clip-retrieval, a .parquet file or a folder of them, or
            a .lance data set; or a list of such, to compare them.
        queries: other shards, whose rows are the queries.
        label: the column of the metadata that must be equal.
        together: ranks all of ``shards`` as one gallery.
        pairs: a CSV with the columns query and gallery that says what is relevant, in place of labels.
        key: the column of the metadata by which ``pairs`` names items; None: row numbers.
        recall_at: the ks of Recall@k.

    Returns:
        A dict: "mAP", "mAP@R", "R-Precision", "Recall@k" as fractions, "queries" that were ranked,
        "without_relevant", those left out, "gallery", "width", "seconds", and "classes", "pairs" or "shares"
        where there are some. For a list of shards, unless ``together``, a dict of such dicts, by path.

    Raises:
        ValueError: no labels, shards of several widths, rows that are not finite, a key without pairs, a
            wrong line of ``pairs`` (named). TypeError: an argument of another kind. FileNotFoundError: no
            such file. ImportError: pyarrow, or for Lance pylance, is missing.

    Numerics: unit rows in float32; counts as in `retrieval_metrics`. Ties have their expected value.

    Memory: the rows of the queries and of one gallery in float32.

    Example:
        >>> import tempfile, torch, semobridge_ext as sb
        >>> import pyarrow as pa, pyarrow.parquet as pq
        >>> rows = torch.eye(2).repeat(2, 1).tolist()
        >>> with tempfile.TemporaryDirectory() as home:
        ...     pq.write_table(pa.table({"features": rows, "label": list("abab")}), f"{home}/a.parquet")
        ...     found = sb.retrieve(f"{home}/a.parquet")
        >>> found["mAP"], found["queries"]
        (1.0, 4)
    """
    args = RETRIEVE.arguments(
        shards=shards, queries=queries, label=label, together=together, pairs=pairs, key=key,
        recall_at=recall_at,
    )  # fmt: skip
    with RETRIEVE.own_words():
        found = retrieve_command.perform(args)
    alone = together or isinstance(shards, (str, os.PathLike))
    return next(iter(found.values())) if alone else found


def search(
    shards: Any,
    queries: Any = None,  # [N, D]
    *,
    text: Any = (),
    image: Any = (),
    k: int = 10,
    model: str | None = None,
    pretrained: Any = None,
    device: str = "cpu",
    max_pixels: int = PIXELS,
    engine: str = "local",
    address: str | None = None,
    actors: int | None = None,
) -> ShardHits:
    """The rows of shards nearest to features, texts or images: ``semobridge-ext search``.

    Exact search by cosine, shard by shard, memory-mapped: the gallery is never in memory as a whole.
    `Gallery` searches one that is, again and again.

    Args:
        shards: a folder of `extract`, `map_shards` or clip-retrieval, a .parquet file or a folder of them, or
            a .lance data set.
        queries: [N, D] features in the space of the shards, a tensor or an array of any float dtype, rows of
            any length. None: ``text`` and ``image`` are the queries, texts first.
        text: a text or a list of them, encoded by the model that made the shards, behind `map_shards` mapped
            as its mapping maps texts.
        image: the path of an image or a list of them, encoded and mapped likewise.
        k: hits a query; fewer where the shards hold fewer rows.
        model: what made the rows, by the names of `extract`, where they do not name it themselves.
        pretrained: open_clip's tag or a checkpoint file of ``model``.
        device: where that model runs.
        max_pixels: larger images are refused.
        engine: "local", or "ray" for the actors of a Ray cluster, which find the same rows.
        address: of the cluster.
        actors: how many; None: one a CPU.

    Returns:
        A named tuple: ``scores`` [N, k] float32 cosines, the largest first; ``indices`` [N, k] int64, rows of
        the shards in their order (that of `read_shards`); ``records``, N lists of k dicts: image_path, label
        .. of each hit. Equal scores stand in order of row.

    Raises:
        ValueError: neither features nor words, or both; features that are not finite or of another width; an
            unfinished folder; texts where they cannot be compared with the rows; a model whose weights are
            others by now. TypeError: an argument of another kind. FileNotFoundError: no such shards or image.

    Numerics: products in float32, of rows as they are stored where they are unit rows already. An image that
        is in the shards finds itself first.

    Memory: a block of 16 384 rows of raw shards, one mapped shard of unit ones, and O(N·k).

    Example:
        >>> import tempfile, numpy as np, semobridge_ext as sb
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as home:
        ...     for i in range(3):
        ...         Image.fromarray(np.full((48, 48, 3), 80 * i, np.uint8)).save(f"{home}/{i}.png")
        ...     feats = sb.extract(home, f"{home}/feats", model="picto", label="none").path
        ...     found = sb.search(feats, sb.read_shards(feats).features[1:2], k=2)
        >>> found.indices[0, 0].item(), found.records[0][0]["image_path"][-5:]
        (1, '1.png')
    """
    args = SEARCH.arguments(
        shards=shards, text=text, image=image, k=k, model=model, pretrained=pretrained, device=device,
        max_pixels=max_pixels, engine=engine, address=address, actors=actors,
    )  # fmt: skip
    if queries is None and not args.text and not args.image:
        remedy = "pass features, or for example text='a red flag'"
        raise ValueError(
            _errors.message("search", "queries, text or image", "be given", "none of them", remedy)
        )
    if queries is not None and (args.text or args.image):
        got = "text" if args.text else "image"
        contract, remedy = "stand alone", "search twice, or encode the words and join the rows"
        raise ValueError(_errors.message("search", "queries", contract, f"{got} beside them", remedy))
    with SEARCH.own_words():
        features = None if queries is None else _unit_queries(queries, args.shards)
        found = search_command.perform(args, features)
    records = [[found.records[row] for row in rows] for rows in found.rows.tolist()]
    return ShardHits(found.scores, found.rows, records)


def _unit_queries(queries: Any, shards: Path) -> Tensor:  # [N, D] float32
    """Features of the shards' width as unit rows."""
    given = _errors.check_float_tensor("search", "queries", _arrays.tensor("search", "queries", queries))
    if given.dim() != 2:
        remedy = "pass one row per query, for example queries[None]"
        raise ValueError(_errors.message("search", "queries", "be [N, D]", given, remedy))
    folder = open_features("search", shards)
    width = next((w for i in folder.shards() if (w := folder.shape(i)[1])), given.shape[1])
    _errors.check_last_dim("search", "queries", given, width, f"{shards} holds rows of that width")
    _errors.check_rows("search", "queries", given, "drop them", infinite=False)
    return torch.nn.functional.normalize(given.detach().cpu().float(), dim=1)

"""What `serve` holds while it runs: rows prepared for exact search, their metadata, the queries' model."""

from __future__ import annotations

import functools
import io
import threading
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from semobridge_ext import _errors
from semobridge_ext.cli import images, models, queries, thumbnails
from semobridge_ext.cli.serve_requests import Query, Refused
from semobridge_ext.cli.shards import Folder
from semobridge_ext.cli.tables import open_features
from semobridge_ext.retrieval.gallery import Gallery

PATH = "image_path"
SIDE = 256  # pixels of a picture in the page
_LISTED = 200  # distinct values up to which a column is offered as a choice


def _as_text(column: Any) -> Any:
    """A column of Arrow as one array of texts; lists and the like as Python writes them."""
    import pyarrow

    try:
        found = column.cast(pyarrow.string())
    except pyarrow.ArrowException:
        found = pyarrow.array([None if v is None else str(v) for v in column.to_pylist()], pyarrow.string())
    return found.combine_chunks() if isinstance(found, pyarrow.ChunkedArray) else found


def _columns(folder: Folder) -> dict[str, Any]:
    """Every column of the metadata over all rows; null where a shard lacks it."""
    import pyarrow

    tables = [folder.table(index) for index in folder.shards()]
    names = list(dict.fromkeys(name for table in tables for name in table.column_names))
    found = {}
    for name in names:
        parts = []
        for table in tables:
            at = table.schema.get_field_index(name)  # -1: absent, or there twice
            parts.append(
                pyarrow.nulls(table.num_rows, pyarrow.string()) if at < 0 else _as_text(table.column(at))
            )
        found[name] = pyarrow.chunked_array(parts, pyarrow.string())
    return found


def _rows(folder: Folder) -> Tensor:  # [G, D]
    """All unit rows, copied once into memory, in the dtype that `search` reads them in."""
    rows, begin = torch.empty(0), 0
    for part in queries.gallery_rows(folder):
        if not begin:
            rows = torch.empty(folder.record_count(), part.shape[1], dtype=part.dtype)
        if part.shape[1] != rows.shape[1] or part.dtype != rows.dtype:
            remedy = "make the folder again"
            contract = f"be {rows.dtype} of width {rows.shape[1]} throughout".replace("torch.", "")
            raise ValueError(_errors.message("serve", "SHARDS", contract, part, remedy))
        rows[begin : begin + len(part)] = part
        begin += len(part)
    if not begin:
        raise ValueError(f"serve: SHARDS must hold features, got none in {folder.path}; extract some images")
    _errors.check_rows("serve", "SHARDS", rows, "make the folder again", infinite=False)
    return rows


def leaders(rows: Tensor, threshold: float) -> list[int]:
    """For each of [n, D] unit rows, best first, the hit that it is a duplicate of: itself, or an earlier one.

    A hit joins the first one before it that is no duplicate and has at least this cosine with it.
    """
    limits, _, near = Gallery(rows.float(), normalize=True).range_search(rows.float(), threshold)
    found: list[int] = []
    for i in range(len(rows)):
        earlier = [j for j in near[limits[i] : limits[i + 1]].tolist() if j < i and found[j] == j]
        found.append(min(earlier, default=i))
    return found


class Session:
    """Searches one folder of shards; every method may be called from several threads."""

    def __init__(
        self,
        path: Path,
        device: str = "cpu",
        max_pixels: int = images.PIXELS,
        maker: tuple[str | None, str | None] = (None, None),  # --model and --pretrained
    ) -> None:
        folder = open_features("serve", path)
        for index in folder.shards():
            folder.check_rows(index)
        folder.check_finished()
        models.name_maker(folder, *maker)
        queries.check_model(folder)
        self.path, self.max_pixels = path, max_pixels
        self.text_refusal = queries.text_refusal(folder, "text", "image")
        self.columns = _columns(folder)
        self._rows = _rows(folder)
        self.gallery = Gallery(self._rows)
        self._encoder = queries.QueryEncoder(folder, device)
        # One picture is decoded at a time, and one query encoded: a client cannot multiply their memory.
        self._decoding, self._encoding = threading.Lock(), threading.Lock()

    # -- what there is -------------------------------------------------------------------------------

    @functools.cached_property
    def _choices(self) -> list[dict[str, Any]]:
        """The columns, with their values where they are few; found once, in a pass over all rows."""
        columns = []
        for name, column in self.columns.items():
            values = None if name == PATH else column.unique().drop_null()
            if values is not None:
                values = sorted(values.to_pylist()) if len(values) <= _LISTED else None
            columns.append({"name": name, "values": values})
        return columns

    def info(self) -> dict[str, Any]:
        return {
            "shards": str(self.path),
            "rows": len(self.gallery),
            "width": self.gallery.width,
            "bytes": self.gallery.nbytes,
            "text": self.text_refusal is None,
            "text_refusal": self.text_refusal,
            "columns": self._choices,
        }

    def metadata(self, row: int) -> dict[str, str]:
        """What is known of one row; columns without a value are left out."""
        found = {name: column[row].as_py() for name, column in self.columns.items()}
        return {name: value for name, value in found.items() if value is not None}

    # -- searching -----------------------------------------------------------------------------------

    def _encode(self, query: Query) -> Tensor:  # [1, D]
        if query.text is not None and self.text_refusal is not None:
            raise Refused(self.text_refusal)
        pixels = None
        if query.image is not None:
            with self._decoding:
                file = io.BytesIO(query.image)
                pixels = self._encoder.pixels("an upload", file, self.max_pixels, "image")
        with self._encoding:
            if pixels is None:
                assert query.text is not None
                return self._encoder.texts([query.text])
            if query.text is None:
                return self._encoder.images([pixels])
            return self._encoder.mixed([query.text], [pixels], query.weight)

    def allowed(self, filters: dict[str, str]) -> Tensor | None:  # [G] bool
        """The rows whose columns have these values; None for all."""
        import pyarrow.compute as compute

        mask = None
        for name, value in filters.items():
            if name not in self.columns:
                contract, got = f"name columns of {', '.join(self.columns)}", repr(name)[:80]
                raise Refused(_errors.message("serve", "filters", contract, got, "name another"))
            same = compute.fill_null(compute.equal(self.columns[name], value), False)
            part = torch.from_numpy(same.to_numpy().copy())
            mask = part if mask is None else mask & part
        return mask

    def search(self, query: Query) -> dict[str, Any]:
        allow = self.allowed(query.filters)
        count = len(self.gallery) if allow is None else int(allow.sum())
        row = self._encode(query)
        began = time.perf_counter()
        scores, found = self.gallery.topk(row, min(query.k, count), allow=allow)
        rows, values = found[0].tolist(), scores[0].tolist()
        hits = [
            {"row": i, "score": score, "image": f"/image/{i}", "metadata": self.metadata(i)}
            for i, score in zip(rows, values, strict=True)
        ]
        if query.group is not None and hits:
            hits = self._grouped(hits, rows, query.group)
        taken = 1000 * (time.perf_counter() - began)
        return {"candidates": count, "found": len(rows), "milliseconds": taken, "hits": hits}

    def _grouped(self, hits: list[dict[str, Any]], rows: list[int], cosine: float) -> list[dict[str, Any]]:
        """The hits that are no duplicates, each with its own, best first."""
        first = leaders(self._rows[rows], cosine)
        for hit in hits:
            hit["duplicates"] = []
        for i, j in enumerate(first):
            if i != j:
                duplicate = {name: value for name, value in hits[i].items() if name != "duplicates"}
                hits[j]["duplicates"].append(duplicate)
        return [hits[i] for i, j in enumerate(first) if i == j]

    # -- pictures ------------------------------------------------------------------------------------

    def picture(self, row: int) -> bytes:
        """A small PNG of the file that the metadata names for a row, or Refused with status 404."""
        from PIL import Image

        if not 0 <= row < len(self.gallery):
            last = len(self.gallery) - 1
            raise Refused(f"serve: row must be from 0 to {last}, got {row}; take one of a search", 404)
        path = self.columns[PATH][row].as_py() if PATH in self.columns else None
        if path is None:
            raise Refused(f"serve: row {row} must have an {PATH}, got none; extract the images here", 404)
        with self._decoding:
            try:
                file = thumbnails.file_of(path)
                if isinstance(file, str) and not Path(file).is_file():  # a pipe would wait for ever
                    raise FileNotFoundError("no such file")
                with images.opened(file, self.max_pixels) as image:
                    small = image.convert("RGBA")
                    small.thumbnail((SIDE, SIDE))
            except Exception as error:  # PIL's plugins raise whatever their parsing meets
                raise Refused(
                    f"serve: the image of row {row} must be readable, got {type(error).__name__}; "
                    "put the file back to where it was extracted from",
                    404,
                ) from error
        page = Image.new("RGB", small.size, "white")
        page.paste(small, (0, 0), small)
        data = io.BytesIO()
        page.save(data, "PNG")
        return data.getvalue()

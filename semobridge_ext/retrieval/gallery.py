"""A gallery prepared once for exact search: rows, their 8-bit codes, files, the verbs of other libraries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from semobridge_ext import _arrays, _errors, _numbers
from semobridge_ext._ops.topk.checks import check_matrix
from semobridge_ext._ops.topk.op import TopK
from semobridge_ext._ops.topk.prepared import Held, PreparedGallery, Segment, allowed, prepared_rows
from semobridge_ext.retrieval import gallery_file
from semobridge_ext.retrieval.range_search import RangeHits, above
from semobridge_ext.retrieval.row_ids import checked_ids, rows_of

if TYPE_CHECKING:
    from typing_extensions import Self


class Gallery(PreparedGallery):
    """Rows to be searched exactly, prepared once: each has 8-bit codes that leave most of them unread.

    ``sb.Gallery(features).topk(queries, k)`` and ``sb.topk(queries, features, k)`` return the same bits; the
    gallery takes 0.4 of the time of float32 scores where there are many queries and 0.13 where there is one,
    on a processor with an instruction for products of codes (docs/ops/topk.md has the figures).

    Args:
        features: [G, D] float32, float16, bfloat16 or float64, G < 2³², a tensor or a NumPy array. float32
            rows are kept as they are, without a copy: do not change them afterwards. Memory-mapped rows stay
            on disk, and only those that the codes cannot rule out are read. float64 rows, rows wider than
            131 072 and rows on a GPU have no codes: they are searched as `topk` does.
        normalize: rows are copied with unit length, and every query is given unit length: cosine search.
        ids: [G] distinct whole numbers that stand for the rows in `remove`, `rows_of` and `search`, and stay
            theirs when rows are removed; None: rows have their numbers alone.

    Raises:
        TypeError, ValueError: kind, dtype or shape.

    Numerics: the codes give every score an interval that holds for certain (docs/methods.md, "Exact search
        through an integer filter"); rows whose interval reaches the k-th best are scored in float32 by
        the same chain of multiply-adds as in `topk`. Ties stand by lower row, a NaN score ranks with −inf.

    Memory: D + 12 bytes a row beside the rows themselves; `add` doubles its room as it grows.

    Threads: any number may search at once, also while others add and remove: a call answers from the rows,
        codes and ids of the moment at which it began. Changes wait for one another. `remove` moves rows up,
        so what a row number means is certain within one call alone: `search` returns ids, and `copy` holds
        the rows still for several calls.

    Example:
        >>> import torch, semobridge_ext as sb
        >>> gallery = sb.Gallery(torch.eye(3), normalize=True)
        >>> gallery.topk(torch.tensor([[0.0, 2.0, 0.0]]), 1)
        TopK(scores=tensor([[1.]]), indices=tensor([[1]]))
    """

    def __init__(self, features: Any, *, normalize: bool = False, ids: Any = None) -> None:  # [G, D], [G]
        features = _arrays.tensor("Gallery", "features", features)
        check_matrix("Gallery", "features", features)
        _errors.check_memory("Gallery", "features", features)
        _errors.check_values("Gallery", "features", features)
        own = None if ids is None else checked_ids("Gallery", ids, len(features))
        rows = prepared_rows(features, bool(normalize))
        super().__init__(Held((Segment(rows),), own), normalize=bool(normalize), called="Gallery")

    @property
    def ids(self) -> Tensor | None:  # [G] int64
        """The ids of the rows, in their order; None where rows have their numbers alone."""
        return self._held.ids

    @property
    def width(self) -> int:
        """D."""
        return self._held.segments[0].room.shape[1]

    def __repr__(self) -> str:
        kind = str(self._held.segments[0].room.dtype).removeprefix("torch.")
        unit = ", normalize=True" if self._normalize else ""
        unit += ", ids" if self.ids is not None else ""
        return f"Gallery({len(self)} rows of {self.width}, {kind}{unit}, {self.nbytes / 1e6:.1f} MB)"

    def topk(
        self,
        queries: Any,  # [N, D]
        k: int,
        *,
        exclude: Any = None,  # [N] whole numbers
        allow: Any = None,  # [G] bool, or a range
    ) -> TopK:
        """The k rows of largest inner product for every query, exactly; see `topk`.

        Args:
            queries: [N, D], any floating dtype; a tensor or a NumPy array.
            k: 0..(rows that take part), one less with ``exclude``.
            exclude: [N] whole numbers, a row that the query must not get; −1 excludes none.
            allow: which rows take part, for all queries alike: a bool mask [G], or ``range(first, end)``.

        Returns:
            ``TopK(scores [N, k], indices [N, k] int64)``, arrays where the queries are; indices count all
            rows, also with ``allow``.

        Raises:
            TypeError, ValueError: as `topk`; a mask of another length, a range outside the gallery.

        Memory: the output, and 64 MiB at most for candidates while k < 130 000.
        """
        return super().topk(queries, k, exclude=exclude, allow=allow)

    def range_search(
        self,
        queries: Any,  # [N, D]
        threshold: float,
        *,
        exclude: Any = None,  # [N] whole numbers
        allow: Any = None,  # [G] bool, or a range
    ) -> RangeHits:
        """Every row whose inner product with a query is at least `threshold`, exactly.

        Args:
            queries, exclude, allow: as ``topk``.
            threshold: a number; a cosine where ``normalize=True``.

        Returns:
            ``RangeHits(limits [N + 1], scores [M], indices [M])``: those of query n are
            ``scores[limits[n] : limits[n + 1]]``, best first, ties by lower row; a NaN score reaches no
            threshold. Arrays where the queries are.

        Raises:
            TypeError, ValueError: as ``topk``; a threshold that is NaN or no number.

        Numerics: the scores of ``topk``, to the bit: k doubles for the queries that found k rows.

        Memory: the output, and twice the longest list for every query that is still searched.
        """
        where = "Gallery.range_search"
        if not _numbers.is_real(threshold) or threshold != threshold:
            remedy = "pass a cosine such as 0.9"
            raise ValueError(_errors.message(where, "threshold", "be a number", threshold, remedy))
        held = self._held
        if not isinstance(queries, Tensor) and _arrays.is_array(queries):
            given = _arrays.tensor(where, "queries", queries, held.device)
            return RangeHits(*map(_arrays.array, self._range(held, given, threshold, exclude, allow)))
        return self._range(held, queries, threshold, exclude, allow)

    def _range(self, held: Held, queries: Any, threshold: float, exclude: Any, allow: Any) -> RangeHits:
        """`range_search` over the rows of one moment."""
        exclude = None if exclude is None else _arrays.whole(exclude, held.device)
        self._topk(held, queries, 0, exclude, allow)  # refuses what no search takes
        return above(
            lambda numbers, k: self._topk(held, queries[numbers], k, allow=allow),
            len(queries), allowed("Gallery.range_search", held, allow)[2], float(threshold), exclude,
        )  # fmt: skip

    def add(self, rows: Any, ids: Any = None) -> Gallery:  # [M, D], [M]
        """Appends rows [M, D] of the gallery's width, in its dtype; the others keep their numbers.

        Args:
            rows: as the constructor takes them.
            ids: [M] new whole numbers where the gallery has ids, else None.

        Raises:
            TypeError, ValueError: as the constructor; ids that are missing, not asked for or known already; a
                number that the gallery's dtype does not reach.
        """
        first = self._held.segments[0].room
        rows = _arrays.tensor("Gallery.add", "rows", rows, first.device)
        check_matrix("Gallery.add", "rows", rows)
        _errors.check_last_dim("Gallery.add", "rows", rows, self.width, f"the gallery has width {self.width}")
        _errors.check_same_device("Gallery.add", "rows", rows, first.device)
        rows = _narrowed(prepared_rows(rows, self._normalize), first.dtype)
        with self._changing:
            held = self._held
            if (ids is None) != (held.ids is None):
                contract = "be given" if ids is None else "be None for a gallery without ids"
                remedy = "give every row of a gallery an id, from its constructor on, or none"
                raise ValueError(_errors.message("Gallery.add", "ids", contract, ids, remedy))
            every = held.ids
            if every is not None:
                every = torch.cat([every, checked_ids("Gallery.add", ids, len(rows), every)])
            self._held = held.appended(rows, every)
        return self

    def rows_of(self, ids: Any) -> Tensor:  # [M] int64
        """The row numbers that ids stand for now; without ids, the numbers themselves.

        Args:
            ids: [M] whole numbers.

        Returns:
            [M] int64 row numbers, on the CPU.

        Raises:
            TypeError, ValueError: no whole numbers, or one that no row has.
        """
        held = self._held
        return rows_of("Gallery.rows_of", "ids", ids, held.ids, held.total)

    def remove(self, ids: Any) -> Gallery:  # [M]
        """Takes rows out, by ids where the gallery has them, else by number; those behind move up.

        Args:
            ids: [M] whole numbers, or one; the same one twice counts once.

        Raises:
            TypeError, ValueError: no whole numbers, or one that no row has; nothing is removed then.

        Memory: a copy of the rows that stay, while it is made; memory-mapped rows are in memory afterwards.
            Takes the time of a copy and of new codes, so remove many rows at once.
        """
        ids = [ids] if _numbers.is_whole(ids) else ids
        with self._changing:
            held = self._held
            gone = rows_of("Gallery.remove", "ids", ids, held.ids, held.total)
            if not len(gone):
                return self
            kept = torch.ones(held.total, dtype=torch.bool, device="cpu")
            kept[gone] = False
            rows = held.rows()[kept.to(held.device)]
            self._held = Held((Segment(rows),), None if held.ids is None else held.ids[kept])
        return self

    def copy(self) -> Self:
        """A gallery of the rows of this moment, over the same memory: neither sees what the other changes.

        For several calls that must meet the same rows while another thread changes the gallery, such as
        ``topk`` and then ``ids[indices]``. ``copy.copy`` does the same, ``copy.deepcopy`` copies the rows.

        Memory: none; what is added to either is its own.
        """
        held = self._held
        made = type(self).__new__(type(self))
        made.__setstate__(self.__getstate__())
        made._held = Held(tuple(segment.tight() for segment in held.segments), held.ids)
        return made

    __copy__ = copy

    # -- the verbs of scikit-learn and FAISS -------------------------------------------------------------

    def kneighbors(
        self, X: Any = None, n_neighbors: int = 5, return_distance: bool = True
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """As ``sklearn.neighbors.NearestNeighbors(metric="cosine").kneighbors``; needs ``normalize=True``.

        Args:
            X: [N, D] array or tensor; None: every gallery row, which is then not its own neighbour.
            n_neighbors: how many.
            return_distance: False returns the indices alone.

        Returns:
            NumPy arrays ``(1 − cosine [N, n_neighbors], indices [N, n_neighbors])``, nearest first.

        Raises:
            ValueError: a gallery without ``normalize=True``: an inner product is no distance.
        """
        if not self._normalize:
            remedy = "make it with sb.Gallery(features, normalize=True), or use topk"
            raise ValueError(
                _errors.message(
                    "Gallery.kneighbors", "the gallery", "have unit rows", "normalize=False", remedy
                )
            )
        held, own = self._held, X is None
        queries = held.rows() if own else _tensor("Gallery.kneighbors", "X", X)
        found = self._topk(
            held, queries, n_neighbors, torch.arange(held.total, device=held.device) if own else None
        )
        scores, indices = map(_arrays.array, found)
        return (np.maximum(1 - scores, 0), indices) if return_distance else indices

    def search(self, x: Any, k: int) -> tuple[np.ndarray, np.ndarray]:
        """As ``faiss.IndexFlatIP.search``: scores [N, k] and row numbers [N, k], best first, in NumPy.

        A gallery with ids returns ids, as ``faiss.IndexIDMap`` does.

        Args:
            x: [N, D] array or tensor.
            k: how many; at most the rows of the gallery (FAISS fills up with −1).
        """
        held = self._held
        found = self._topk(held, _tensor("Gallery.search", "x", x), k)
        indices = found.indices if held.ids is None else held.ids[found.indices.cpu()]
        return _arrays.array(found.scores), _arrays.array(indices)

    # -- files -------------------------------------------------------------------------------------------

    def save(self, path: Any) -> None:
        """Writes rows and codes to `path` as safetensors, atomically: ``load`` gives the same gallery.

        Memory: a copy of the rows where `add` has brought some, else nothing.
        """
        gallery_file.save(path, self._held, self._normalize)

    @classmethod
    def load(cls, path: Any) -> Self:
        """Reads what ``save`` wrote to `path`; refuses a foreign or inconsistent file (ValueError).

        Files of 64 MiB or more are memory-mapped: rows are read when they are searched, and the file must
        stay as it is for as long as the gallery lives. The checksums of the codes are compared, and of the
        rows where they are not mapped.
        """
        held, normalize = gallery_file.load("Gallery.load", path)
        gallery = cls.__new__(cls)
        PreparedGallery.__init__(gallery, held, normalize=normalize, called="Gallery")
        return gallery


def _narrowed(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows in the gallery's dtype; an infinity made of a number would be the best hit of many queries."""
    found = rows.to(dtype)
    if found.dtype is not rows.dtype and bool((lost := found.isinf() & ~rows.isinf()).any()):
        row, column = lost.nonzero()[0].tolist()
        kind, got = str(dtype).removeprefix("torch."), f"{float(rows[row, column]):g} in row {row}"
        remedy = "scale the rows, or make the gallery of float32 rows"
        raise ValueError(_errors.message("Gallery.add", "rows", f"fit into {kind}", got, remedy))
    return found


def _tensor(function: str, name: str, value: Any) -> Tensor:
    value = _arrays.tensor(function, name, value)
    check_matrix(function, name, value)
    return value

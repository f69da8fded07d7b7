"""Gallery rows prepared once for many searches: 8-bit codes beside them, rows that come later, masks.

Rows lie in segments: those that the gallery began with, as they were given, and one that grows. Every
segment is searched on its own and the lists are joined by the order of `topk`, so that the result is that
of one search over all rows, to the bit.

What a gallery holds never changes: a change makes another `Held` and puts it in the place of the old
one. A search reads the place once, so that it has the rows, codes and ids of one moment, whatever other
threads do.
"""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from semobridge_ext import _arrays, _errors
from semobridge_ext._ops.quantize_rows.op import Codes, can_quantize, empty_codes, quantize_rows
from semobridge_ext._ops.topk import cpu
from semobridge_ext._ops.topk.checks import SearchableGallery, check, excluded
from semobridge_ext._ops.topk.op import TopK, topk
from semobridge_ext.runtime.choice import direct, in_transform, plain
from semobridge_ext.runtime.rows import compute_dtype, unit_columns, unit_rows


class Segment:
    """Rows with their codes; both may have room behind the last one, which the next segment takes.

    Args:
        rows: [capacity, D], of which the first `size` count.
        codes: of these rows and as many more as there is room for; None: made here where rows can have codes.
    """

    __slots__ = ("code_room", "room", "size")

    def __init__(self, rows: Tensor, size: int | None = None, codes: Codes | None = None) -> None:
        self.room, self.size = rows, len(rows) if size is None else size
        if codes is None and self.size and can_quantize(rows):
            codes = quantize_rows(self.rows)
        self.code_room = codes

    @property
    def rows(self) -> Tensor:
        return self.room[: self.size]

    @property
    def codes(self) -> Codes | None:
        panels = -(-self.size // 32)
        return None if self.code_room is None else Codes(*(part[:panels] for part in self.code_room))

    @property
    def nbytes(self) -> int:
        own = self.room.numel() * self.room.element_size()
        return own + (0 if self.code_room is None else self.code_room.nbytes)

    def tight(self) -> Segment:
        """The same rows without the room behind them: what grows from it takes memory of its own."""
        return Segment(self.rows, codes=self.codes)

    def grown(self, rows: Tensor) -> Segment:
        """A segment with these rows appended; this one stays as it is, and cannot be grown again.

        Each row is copied a bounded number of times on average, since room doubles. Codes are made with those
        of the panel that they share: its old rows get the bytes that they have, so that a search of this
        segment, which may be running, reads nothing else.
        """
        begin, end = self.size, self.size + len(rows)
        room, codes = self.room, self.code_room
        larger = end > len(room)
        if larger:
            room = self.room.new_empty(max(end, 2 * len(self.room), 64), self.room.shape[1])
            room[:begin] = self.rows
        room[begin:end] = rows
        if end and can_quantize(room):
            whole = begin // 32  # panels that stay as they are
            if codes is None or larger:
                codes = empty_codes(*room.shape)
                for place, old in zip(codes, self.codes or (), strict=False):
                    place[:whole] = old[:whole]
            for place, new in zip(codes, quantize_rows(room[32 * whole : end]), strict=True):
                place[whole : whole + len(new)] = new
        return Segment(room, end, codes)


class Held(NamedTuple):
    """What a gallery holds at one moment."""

    segments: tuple[Segment, ...]  # one, or two of which the second grows
    ids: Tensor | None  # [G] int64

    @property
    def total(self) -> int:
        return sum(segment.size for segment in self.segments)

    @property
    def device(self) -> torch.device:
        return self.segments[0].room.device

    def rows(self) -> Tensor:  # [G, D]
        parts = [segment.rows for segment in self.segments]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def appended(self, rows: Tensor, ids: Tensor | None) -> Held:
        first = self.segments[0]
        last = self.segments[1] if len(self.segments) > 1 else Segment(first.room.new_empty(0, rows.shape[1]))
        return Held((first, last.grown(rows)), ids)


class PreparedGallery(SearchableGallery):
    """What `Gallery` searches with.

    Args:
        held: rows of one width, dtype and device, and their ids.
        normalize: queries are brought to unit length first, as the rows have been.
        called: the public class, for messages.
    """

    def __init__(self, held: Held, *, normalize: bool, called: str) -> None:
        self._held, self._normalize, self._called = held, normalize, called
        self._changing = threading.Lock()  # held by whoever replaces self._held

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_changing"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _changing=threading.Lock())

    def __len__(self) -> int:
        return self._held.total

    @property
    def nbytes(self) -> int:
        """Bytes of rows and codes together."""
        return sum(segment.nbytes for segment in self._held.segments)

    def topk(
        self,
        queries: Any,  # [N, D]
        k: int,
        *,
        exclude: Any = None,  # [N] whole numbers
        allow: Any = None,  # [G] bool, or a range of rows
    ) -> TopK:
        return self._topk(self._held, queries, k, exclude, allow)

    def _topk(self, held: Held, queries: Any, k: int, exclude: Any = None, allow: Any = None) -> TopK:
        """`topk` over the rows of one moment."""
        where = f"{self._called}.topk"
        if not isinstance(queries, Tensor) and _arrays.is_array(queries):
            given = _arrays.tensor(where, "queries", queries, held.device)
            return TopK(*map(_arrays.array, self._topk(held, given, k, exclude, allow)))
        if exclude is not None:
            exclude = _arrays.whole(exclude, held.device)
        rows, mask, count = allowed(where, held, allow)
        check(where, queries, held.segments[0].room, k, exclude, count)
        if self._normalize:
            wide = queries if queries.dtype is torch.float64 else queries.float()
            queries = unit_rows(wide)
        exclude = excluded(where, exclude, held.total)
        if len(held.segments) == 1:
            return _search(held.segments[0], queries, k, exclude, mask, rows)
        return _joined(held, queries, k, exclude, mask, rows)


def allowed(where: str, held: Held, allow: Any) -> tuple[range, Tensor | None, int]:
    """The rows that take part, and how many they are."""
    whole = range(held.total)
    if allow is None:
        return whole, None, len(whole)
    if isinstance(allow, range):
        if allow.step != 1 or not 0 <= allow.start <= allow.stop <= held.total:
            contract, remedy = f"be a range within 0..{held.total} in steps of 1", "or pass a mask"
            raise ValueError(_errors.message(where, "allow", contract, allow, remedy))
        return allow, None, len(allow)
    if isinstance(allow, np.ndarray) and allow.dtype == bool:
        allow = _arrays.shared(allow).to(held.device)
    if not isinstance(allow, Tensor) or allow.dtype is not torch.bool:
        remedy = "pass a bool tensor with one entry per row, or range(first, last + 1)"
        raise TypeError(_errors.message(where, "allow", "be a bool tensor or a range", allow, remedy))
    if allow.shape != (held.total,):
        remedy = "pass one entry per gallery row"
        raise ValueError(_errors.message(where, "allow", f"be [{held.total}]", allow, remedy))
    _errors.check_memory(where, "allow", allow)
    _errors.check_same_device(where, "allow", allow, held.device)
    allow = allow.clone()  # its own, which no other thread writes
    return whole, allow, int(allow.sum())


def _search(
    segment: Segment,
    queries: Tensor,
    k: int,
    exclude: Tensor | None,
    mask: Tensor | None,
    rows: range,
) -> TopK:
    gallery = segment.rows
    if (
        not in_transform()
        and not torch.compiler.is_compiling()
        and direct(queries, gallery) == "cpu"
        and plain(gallery, exclude, mask)
    ):
        return TopK(*cpu.topk(queries, gallery, k, exclude, coded=segment.code_room, allow=mask, rows=rows))
    return _by_operator(gallery, queries, k, exclude, mask, rows)


def _by_operator(
    gallery: Tensor,
    queries: Tensor,
    k: int,
    exclude: Tensor | None,
    mask: Tensor | None,
    rows: range,
) -> TopK:
    """Over the rows that take part alone: on other devices and backends, and with gradients."""
    every = len(gallery)
    if mask is None:  # their numbers are moved, and none is looked up
        if exclude is not None:
            inside = (exclude >= rows.start) & (exclude < rows.stop)
            exclude = torch.where(inside, exclude - rows.start, -1)
        scores, indices = topk(queries, gallery[rows.start : rows.stop], k, exclude=exclude)
        return TopK(scores, indices + rows.start)
    kept = mask.nonzero().squeeze(1)
    gallery = gallery[kept]
    if exclude is not None:
        place = torch.full((every + 1,), -1, device=kept.device)
        place[kept] = torch.arange(len(kept), device=kept.device)
        exclude = torch.where(exclude < 0, -1, place[exclude.clamp(min=0)])
    scores, indices = topk(queries, gallery, k, exclude=exclude)
    return TopK(scores, kept[indices])


def _joined(
    held: Held, queries: Tensor, k: int, exclude: Tensor | None, mask: Tensor | None, rows: range
) -> TopK:
    """The lists of all segments as one; each is one longer where a row of it may be excluded."""
    more = k if exclude is None else k + 1
    lists, begin = [], 0
    for segment in held.segments:
        end = begin + segment.size
        part = None if mask is None else mask[begin:end]
        inside = range(max(rows.start - begin, 0), max(min(rows.stop, end) - begin, 0))
        count = len(inside) if part is None else int(part.sum())
        if count:
            found = _search(segment, queries, min(more, count), None, part, inside)
            lists.append(TopK(found.scores, found.indices + begin))
        begin = end
    empty = queries.new_empty(len(queries), 0, dtype=compute_dtype(queries.dtype))
    scores = torch.cat([found.scores for found in lists] or [empty], 1)
    indices = torch.cat([found.indices for found in lists] or [empty.long()], 1)
    ranks = torch.where(torch.isnan(scores), -torch.inf, scores)
    if exclude is not None:  # behind everything, whatever its score
        left_out = indices == exclude.unsqueeze(1)
        order = torch.argsort(ranks, dim=1, descending=True, stable=True)
        last = left_out.gather(1, order).to(torch.int8).argsort(dim=1, stable=True)
        order = order.gather(1, last)[:, :k]
    else:
        order = torch.argsort(ranks, dim=1, descending=True, stable=True)[:, :k]
    return TopK(scores.gather(1, order), indices.gather(1, order))


def prepared_rows(rows: Tensor, normalize: bool) -> Tensor:
    """Rows as a gallery keeps them: with unit columns, of unit length where it is asked for."""
    rows = unit_columns(rows)
    if not normalize:
        return rows
    if rows.dtype in (torch.float32, torch.float64):
        return unit_rows(rows)
    return unit_rows(rows.float()).to(rows.dtype)

"""Gallery rows prepared once for many searches: 8-bit codes beside them, rows that come later, masks.

Rows lie in segments: those that the gallery began with, as they were given, and one that grows. Every
segment is searched on its own and the lists are joined by the order of `topk`, so that the result is that
of one search over all rows, to the bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from semobridge_ext import _arrays, _errors
from semobridge_ext._ops.quantize_rows.op import Codes, can_quantize, quantize_rows
from semobridge_ext._ops.topk import cpu
from semobridge_ext._ops.topk.checks import SearchableGallery, check, excluded
from semobridge_ext._ops.topk.op import TopK, topk
from semobridge_ext.runtime.choice import direct, in_transform, plain
from semobridge_ext.runtime.rows import compute_dtype, unit_columns, unit_rows


class Segment:
    """Rows with their codes; `rows` and the codes may have room behind the last one.

    Args:
        rows: [capacity, D], of which the first `size` count.
        codes: of these rows, None: made here where rows can have codes.
    """

    __slots__ = ("codes", "room", "size")

    def __init__(self, rows: Tensor, size: int | None = None, codes: Codes | None = None) -> None:
        self.room, self.size = rows, len(rows) if size is None else size
        if codes is None and self.size and can_quantize(rows):
            codes = quantize_rows(self.rows)
        self.codes = codes

    @property
    def rows(self) -> Tensor:
        return self.room[: self.size]

    @property
    def nbytes(self) -> int:
        own = self.room.numel() * self.room.element_size()
        return own + (0 if self.codes is None else self.codes.nbytes)

    def add(self, rows: Tensor) -> None:
        """Appends rows, whose codes are made with those of the panel that they share."""
        need = self.size + len(rows)
        if need > len(self.room):
            larger = self.room.new_empty(max(need, 2 * len(self.room), 64), self.room.shape[1])
            larger[: self.size] = self.rows
            self.room = larger
        self.room[self.size : need] = rows
        if can_quantize(self.room):
            whole = 0 if self.codes is None else self.size // 32  # panels that stay as they are
            new = quantize_rows(self.room[32 * whole : need])
            old = new if self.codes is None else self.codes
            kept = Codes(old.codes[:whole], old.bounds[:whole])
            self.codes = Codes(*(torch.cat(pair) for pair in zip(kept, new, strict=True)))
        self.size = need


class PreparedGallery(SearchableGallery):
    """What `Gallery` searches with.

    Args:
        segments: rows of one width, dtype and device; the last one grows.
        normalize: queries are brought to unit length first, as the rows have been.
        called: the public class, for messages.
    """

    def __init__(self, segments: list[Segment], *, normalize: bool, called: str) -> None:
        self._segments, self._normalize, self._called = segments, normalize, called

    def __len__(self) -> int:
        return sum(segment.size for segment in self._segments)

    @property
    def nbytes(self) -> int:
        """Bytes of rows and codes together."""
        return sum(segment.nbytes for segment in self._segments)

    def _all_rows(self) -> Tensor:
        parts = [segment.rows for segment in self._segments]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _append(self, rows: Tensor) -> None:
        if len(self._segments) == 1:
            first = self._segments[0].room
            self._segments.append(Segment(first.new_empty(0, first.shape[1])))
        self._segments[-1].add(rows)

    def topk(
        self,
        queries: Any,  # [N, D]
        k: int,
        *,
        exclude: Any = None,  # [N] whole numbers
        allow: Any = None,  # [G] bool, or a range of rows
    ) -> TopK:
        where = f"{self._called}.topk"
        device = self._segments[0].room.device
        if not isinstance(queries, Tensor) and _arrays.is_array(queries):
            given = _arrays.tensor(where, "queries", queries, device)
            return TopK(*map(_arrays.array, self.topk(given, k, exclude=exclude, allow=allow)))
        if exclude is not None:
            exclude = _arrays.whole(exclude, device)
        rows, mask, count = self._allowed(where, allow)
        check(where, queries, self._segments[0].room, k, exclude, count)
        if self._normalize:
            wide = queries if queries.dtype is torch.float64 else queries.float()
            queries = unit_rows(wide)
        exclude = excluded(where, exclude, len(self))
        if len(self._segments) == 1:
            return self._search(self._segments[0], queries, k, exclude, mask, rows)
        return self._joined(queries, k, exclude, mask, rows)

    def _allowed(self, where: str, allow: Any) -> tuple[range, Tensor | None, int]:
        """The rows that take part, and how many they are."""
        whole = range(len(self))
        if allow is None:
            return whole, None, len(whole)
        if isinstance(allow, range):
            if allow.step != 1 or not 0 <= allow.start <= allow.stop <= len(self):
                contract, remedy = f"be a range within 0..{len(self)} in steps of 1", "or pass a mask"
                raise ValueError(_errors.message(where, "allow", contract, allow, remedy))
            return allow, None, len(allow)
        if isinstance(allow, np.ndarray) and allow.dtype == bool:
            allow = _arrays.shared(allow).to(self._segments[0].room.device)
        if not isinstance(allow, Tensor) or allow.dtype is not torch.bool:
            remedy = "pass a bool tensor with one entry per row, or range(first, last + 1)"
            raise TypeError(_errors.message(where, "allow", "be a bool tensor or a range", allow, remedy))
        if allow.shape != (len(self),):
            remedy = "pass one entry per gallery row"
            raise ValueError(_errors.message(where, "allow", f"be [{len(self)}]", allow, remedy))
        _errors.check_memory(where, "allow", allow)
        _errors.check_same_device(where, "allow", allow, self._segments[0].room.device)
        return whole, allow.clone(), int(allow.sum())

    def _search(
        self,
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
            return TopK(*cpu.topk(queries, gallery, k, exclude, coded=segment.codes, allow=mask, rows=rows))
        return self._by_operator(gallery, queries, k, exclude, mask, rows)

    def _by_operator(
        self,
        gallery: Tensor,
        queries: Tensor,
        k: int,
        exclude: Tensor | None,
        mask: Tensor | None,
        rows: range,
    ) -> TopK:
        """Over the rows that take part alone: on other devices and backends, and with gradients."""
        if mask is None:
            kept = torch.arange(rows.start, rows.stop, device=gallery.device)
            gallery = gallery[rows.start : rows.stop]
        else:
            kept = mask.nonzero().squeeze(1)
            gallery = gallery[kept]
        if exclude is not None:
            place = torch.full(
                (max(int(kept.max()) if len(kept) else 0, len(self)) + 2,), -1, device=kept.device
            )
            place[kept] = torch.arange(len(kept), device=kept.device)
            exclude = torch.where(exclude < 0, -1, place[exclude.clamp(min=0)])
        scores, indices = topk(queries, gallery, k, exclude=exclude)
        return TopK(scores, kept[indices])

    def _joined(
        self, queries: Tensor, k: int, exclude: Tensor | None, mask: Tensor | None, rows: range
    ) -> TopK:
        """The lists of all segments as one; each is one longer where a row of it may be excluded."""
        more = k if exclude is None else k + 1
        lists, begin = [], 0
        for segment in self._segments:
            end = begin + segment.size
            part = None if mask is None else mask[begin:end]
            inside = range(max(rows.start - begin, 0), max(min(rows.stop, end) - begin, 0))
            count = len(inside) if part is None else int(part.sum())
            if count:
                found = self._search(segment, queries, min(more, count), None, part, inside)
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

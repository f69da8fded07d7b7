"""SupportSet: a support set prepared once, queried many times, grown in place, opened from disk.

The keys stay in the dtype they came in and are visited in class order. Appending costs what the new
rows cost: they form a segment of their own, and segments of similar size are merged (each row is
copied O(log S) times in all). A saved set lies in class order in one safetensors file, which `load`
maps into memory: opening 1.28 million rows reads a few kilobytes and the labels.
"""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from semobridge_ext import _arrays, _checksum, _errors, _files, _schema
from semobridge_ext._ops.support_logits.checks import (
    check_beta,
    check_queries,
    check_support,
    support_tensors,
)
from semobridge_ext._ops.support_logits.class_order import ClassOrder, sort_by_class
from semobridge_ext._ops.support_logits.op import run
from semobridge_ext.runtime.backend import _C

if TYPE_CHECKING:
    from typing_extensions import Self

_FORMAT = "semobridge-ext support 1"
_NAMES = {torch.float32: "F32", torch.float64: "F64", torch.float16: "F16", torch.bfloat16: "BF16"}
_FILE = {
    # Read from disk when a query needs them.
    "keys": _schema.Field(("S", "D"), finite=False, streamed=True),
    "labels": _schema.Field(("S",), _schema.WHOLE),
    "weights": _schema.Field(("S",), finite=False, optional=True),
}
_BLOCK_ROWS = 1 << 14  # gathered and written at a time


class _Segment(NamedTuple):
    keys: Tensor  # [s, D]
    labels: Tensor  # [s]
    weights: Tensor | None  # [s]
    classes: ClassOrder | None  # None: no kernel asks for it on this device

    def order(self) -> Tensor:
        if self.classes is not None and self.classes.order is not None:
            return self.classes.order
        if self.classes is not None:
            return torch.arange(len(self.labels), device=self.labels.device)
        return torch.argsort(self.labels, stable=True)


def _segment(
    keys: Tensor, labels: Tensor, weights: Tensor | None, num_classes: int, function: str
) -> _Segment:
    sorted_here = labels.is_cuda or (labels.is_cpu and _C is not None)
    classes = sort_by_class(labels, num_classes, function) if sorted_here else None
    return _Segment(keys, labels, weights, classes)


class SupportSet:
    """Keys, labels and weights of a cache classifier, prepared for `support_logits`.

    Args:
        keys: [S, D] float32, float64, bfloat16 or float16, unit rows (not checked); a tensor or a NumPy
            array, held, not copied.
        labels: [S] whole numbers in 0..C-1 as tensor, array or list, any order; int64 ones are held.
        num_classes: C, below 2³¹.
        weights: [S] factor per key; a set has weights from the start or never.

    Raises:
        TypeError: not a tensor, or not the dtype named above. ValueError: shapes or devices that do
            not fit; a label out of range (the first is named with its position).

    Numerics: those of `support_logits`, segment by segment; the segments' sums are added in order.

    Memory: 8 bytes per key besides what it holds.

    Example:
        >>> import torch, semobridge_ext as sb
        >>> support = sb.SupportSet(torch.eye(2), torch.tensor([0, 1]), 2)
        >>> support.append(torch.eye(2), torch.tensor([1, 1]))
        >>> support.logits(torch.eye(2)[:1], beta=1.0)
        tensor([[1.0000, 1.7358]])
    """

    def __init__(
        self,
        keys: Any,  # [S, D]
        labels: Any,  # [S] whole numbers
        num_classes: int,
        *,
        weights: Any = None,  # [S]
    ) -> None:
        keys, labels, weights = support_tensors("SupportSet", keys, labels, weights)
        check_support("SupportSet", keys, labels, num_classes, weights)
        self.num_classes = int(num_classes)
        self._segments = [_segment(keys, labels, weights, num_classes, "SupportSet")]
        self._changing = threading.Lock()  # held by whoever replaces self._segments

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_changing"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _changing=threading.Lock())

    def __len__(self) -> int:
        return sum(len(s.labels) for s in self._segments)

    def __repr__(self) -> str:
        first = self._segments[0]
        kind = str(first.keys.dtype).removeprefix("torch.")
        return f"SupportSet({len(self)} keys, {self.num_classes} classes, {self.width} × {kind})"

    @property
    def width(self) -> int:
        """D."""
        return self._segments[0].keys.shape[1]

    @property
    def keys(self) -> Tensor:
        """[S, D] in the order of insertion (of the file, for a loaded set)."""
        return self._joined("keys")

    @property
    def labels(self) -> Tensor:
        """[S] int64, beside `keys`."""
        return self._joined("labels")

    @property
    def weights(self) -> Tensor | None:
        """[S] beside `keys`, or None."""
        return None if self._segments[0].weights is None else self._joined("weights")

    def _joined(self, name: str) -> Tensor:
        parts = [getattr(s, name) for s in self._segments]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def append(
        self,
        keys: Any,  # [s, D]
        labels: Any,  # [s] whole numbers
        weights: Any = None,  # [s]
    ) -> None:
        """Adds rows; the set is unchanged if they are refused.

        A running `logits` or `save` of another thread keeps the rows it began with, and appends wait for one
        another.

        Args:
            keys: [s, D] unit rows in the set's dtype.
            labels: [s] whole numbers in 0..C-1.
            weights: [s] where the set has weights.

        Raises:
            TypeError, ValueError: as the constructor; width, dtype, device or the presence of weights
                differ from the set's.
        """
        name, first = "SupportSet.append", self._segments[0]
        keys, labels, weights = support_tensors(name, keys, labels, weights, first.keys.device)
        check_support(name, keys, labels, self.num_classes, weights)
        _errors.check_last_dim(name, "keys", keys, self.width, f"the set has width {self.width}")
        _errors.check_same_device(name, "keys", keys, first.keys.device)
        if keys.dtype is not first.keys.dtype:
            dtype = str(first.keys.dtype)
            remedy = f"convert it with .to({dtype})"
            raise TypeError(_errors.message(name, "keys", f"be {dtype}", keys, remedy))
        if (weights is None) != (first.weights is None):
            contract = "be given" if weights is None else "be None"
            has = "has no" if first.weights is None else "has"
            remedy = f"the set {has} weights"
            raise ValueError(_errors.message(name, "weights", contract, weights, remedy))
        new = _segment(keys, labels, weights, self.num_classes, name)
        with self._changing:
            segments = [*self._segments, new]
            while len(segments) > 1 and len(segments[-2].labels) <= 2 * len(segments[-1].labels):
                b, a = segments.pop(), segments.pop()
                joined = None
                if a.weights is not None and b.weights is not None:
                    joined = torch.cat([a.weights, b.weights.to(a.weights.dtype)])
                segments.append(
                    _segment(
                        torch.cat([a.keys, b.keys]), torch.cat([a.labels, b.labels]), joined,
                        self.num_classes, name,
                    )
                )  # fmt: skip
            self._segments = segments

    def logits(
        self,
        queries: _arrays.Rows,  # [N, D]
        *,
        beta: float = 1.0,
    ) -> _arrays.Rows:  # [N, C]
        """``support_logits`` of these queries.

        Differentiable in them, and in the keys and weights that the set was built from.

        Args:
            queries: [N, D] float32, float64, bfloat16 or float16, unit rows (not checked); for an array an
                array comes back.
            beta: sharpness.

        Raises:
            TypeError, ValueError: as `support_logits`.
        """
        if _arrays.is_array(queries):
            device = self._segments[0].keys.device
            found: Any = self.logits(
                _arrays.tensor("SupportSet.logits", "queries", queries, device), beta=beta
            )
            return _arrays.array(found)
        rows: Any = queries
        check_queries("SupportSet.logits", rows, self.width, self._segments[0].keys.device)
        beta = check_beta("SupportSet.logits", beta)
        total: Any = None
        for s in self._segments:
            part = run(rows, s.keys, s.labels, self.num_classes, beta, s.weights, s.classes)
            total = part if total is None else total + part
        assert total is not None
        return total

    # -- files ---------------------------------------------------------------------------------------

    def _in_class_order(self, name: str) -> Iterator[Tensor]:
        """Blocks of one field, in class order, gathered segment by segment and class by class."""
        if len(self._segments) == 1:
            segment = self._segments[0]
            order, field = segment.order(), getattr(segment, name)
            for i in range(0, len(order), _BLOCK_ROWS):
                yield field[order[i : i + _BLOCK_ROWS]]
            return
        whole = getattr(self, name)
        order = torch.argsort(self.labels, stable=True)
        for i in range(0, len(order), _BLOCK_ROWS):
            yield whole[order[i : i + _BLOCK_ROWS]]

    def save(self, path: Any) -> None:
        """Writes a safetensors file (``keys``, ``labels``, ``weights``) in class order.

        Rows are gathered and written a block at a time; appended ones are joined first, which takes
        a copy of the keys. They are gathered twice: their checksum stands before them in the file.

        Args:
            path: the file; it is replaced as a whole.

        Raises:
            OSError: the file cannot be written.
        """
        copy.copy(self)._save(path)  # the rows of this moment

    def _save(self, path: Any) -> None:
        fields = ["labels", "keys"] + ([] if self._segments[0].weights is None else ["weights"])
        meta = {
            "format": _FORMAT, "num_classes": str(self.num_classes), "fields": " ".join(fields)
        }  # fmt: skip
        header: dict[str, Any] = {"__metadata__": meta}
        at, sums = 0, {}
        for name in fields:
            first = getattr(self._segments[0], name)
            size = len(self) * first.element_size() * (self.width if name == "keys" else 1)
            shape = [len(self), self.width] if name == "keys" else [len(self)]
            dtype = "I64" if name == "labels" else _NAMES[first.dtype]
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
            at += size
            sums[name] = _checksum.of_blocks(first.dtype, shape, self._in_class_order(name))
        meta[_checksum.KEY] = _checksum.entry(meta, sums)
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 64 + 56)  # the data begins at a multiple of 64
        with _files.replaced(path) as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name in fields:
                for block in self._in_class_order(name):
                    data = block.detach().cpu().contiguous().view(torch.uint8)
                    file.write(data.numpy().data)

    @classmethod
    def load(cls, path: Any) -> Self:
        """Maps what ``save`` wrote; keys are read from disk when a query needs them.

        A file below 64 MiB is read into memory as a whole, so that it may change or go afterwards.

        Args:
            path: the file.

        Raises:
            FileNotFoundError: no such file. ValueError: a foreign or truncated file, tensors whose shapes or
                dtypes do not fit each other, or labels that are not in class order.
        """
        name = "SupportSet.load"
        tensors, meta = _schema.load(name, path, _FORMAT, _FILE, ("num_classes",))
        keys, labels, weights = tensors["keys"], tensors["labels"], tensors.get("weights")
        with _schema.restoring(name, path):
            num_classes = int(meta["num_classes"])
            listed = meta.get("fields", " ".join(tensors))
            _schema.need(name, path, set(listed.split()) == set(tensors), "the fields it lists", listed)
            check_support(name, keys, labels, num_classes, weights)
            rising = not bool((labels[1:] < labels[:-1]).any())
            _schema.need(name, path, rising, "labels in class order", "labels that fall")
            return cls._loaded(keys, labels, weights, num_classes, name)

    @classmethod
    def _loaded(
        cls, keys: Tensor, labels: Tensor, weights: Tensor | None, num_classes: int, name: str
    ) -> Self:
        made = cls.__new__(cls)
        segments = [_segment(keys, labels, weights, num_classes, name)]
        made.__setstate__({"num_classes": num_classes, "_segments": segments})
        classes = made._segments[0].classes
        if classes is not None:  # it is the identity: 8 bytes a row that need not stay
            made._segments = [made._segments[0]._replace(classes=ClassOrder(None, classes.offsets))]
        return made

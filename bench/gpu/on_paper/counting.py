"""What PyTorch launches, counted where it dispatches; tensors recently used are found in L2."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from on_paper.machine import Launch, product, resident

DIGITS = 4  # passes of PyTorch's selection of the best: eight bits of the score each, and one that gathers
_FREE = ("empty", "new_empty", "empty_like", "empty_strided", "_unsafe_view", "lift_fresh", "item",
         "_local_scalar_dense", "is_same_size", "set_", "resize_")  # fmt: skip


class Places:
    """Where storages lie: a new one where the last one of its size was freed, as PyTorch's allocator has it.

    The same calls give the same places, whatever the host's own allocator does.
    """

    def __init__(self) -> None:
        self._live: dict[int, tuple[StorageWeakRef, int, int]] = {}  # reference, bytes, place
        self._free: dict[int, list[int]] = {}  # places by bytes
        self._count = 0

    def of(self, t: Tensor) -> int:
        storage = t.untyped_storage()
        if storage._cdata in self._live:  # a weak reference keeps the address from being used again
            return self._live[storage._cdata][2]
        for key, (reference, size, place) in list(self._live.items()):
            if reference.expired():
                self._free.setdefault(size, []).append(place)
                del self._live[key]
        left = self._free.get(storage.nbytes())
        if not left:
            self._count += 1
            left = [self._count]
        self._live[storage._cdata] = StorageWeakRef(storage), storage.nbytes(), left.pop()
        return self._live[storage._cdata][2]


class Recent:
    """Which tensors L2 still holds: those used last, whole ones, by their places."""

    def __init__(self) -> None:
        self._held: OrderedDict[int, int] = OrderedDict()

    def missed(self, key: int, size: int) -> int:
        """Bytes that come from memory, or go there."""
        found = self._held.pop(key, None)
        if size > resident():
            return size
        self._held[key] = size
        while sum(self._held.values()) > resident():
            self._held.popitem(last=False)
        return 0 if found == size else size


def _size(t: Tensor) -> int:
    return t.numel() * t.element_size()


class Count(TorchDispatchMode):
    """One launch for every operator that is no view and no bare allocation."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: list[Launch] = []
        self.paused = False
        self._recent, self._places = Recent(), Places()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[1]
        view = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        if self.paused or view or name in _FREE:
            return out
        touched = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor)]
        distinct = list({id(t): t for t in touched}.values())
        moved = float(sum(map(_size, distinct)))
        memory = float(sum(self._recent.missed(self._places.of(t), _size(t)) for t in distinct))
        half = all(t.element_size() == 2 for t in touched if t.is_floating_point())
        if name in ("mm", "addmm", "addmm_"):
            a, b = args[int(name != "mm") :][:2]
            size = a.element_size()
            self.launches.append(
                product(name, len(a), a.shape[1], b.shape[1], size=size, out_size=out.element_size(),
                        memory=memory)
            )  # fmt: skip
        elif name == "scatter_":
            # Of the array only a sector an index is touched.
            into, _, at = args[:3]
            moved = 32.0 * at.numel() + sum(_size(t) for t in distinct if t is not into)
            self.launches.append(Launch(name, moved if memory > resident() else 0.0, moved))
        elif name == "topk":
            scores = _size(args[0])
            one = Launch(name, scores if memory >= scores else 0.0, scores)
            self.launches += [one] * (DIGITS + 1)
        elif name == "sort":
            keys = args[0]  # a radix sort: a pass for eight bits, each moves the keys and their places twice
            moved = 2.0 * keys.numel() * (keys.element_size() + 8)
            one = Launch(name, moved if moved > resident() else 0.0, moved)
            self.launches += [one] * keys.element_size()
        else:
            flops = flop_registry.get(func._overloadpacket)
            work = float(flops(*args, **(kwargs or {}), out_val=out)) if flops else 0.0
            self.launches.append(Launch(name, memory, moved, work, half))
        return out


def counted(step: Callable[[], object]) -> list[Launch]:
    with Count() as count, fused_attention(count):
        step()
    return count.launches


@contextlib.contextmanager
def fused_attention(count: Count) -> Iterator[None]:
    """Attention as one launch each way, which CUDA gives and meta tensors would not."""

    class Fused(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            count.paused = True
            ctx.save_for_backward(q, k, v)
            out = torch.empty_like(q)
            count.paused = False
            ctx.work = 4.0 * q.numel() * k.shape[-2]
            count.launches.append(_attention("attention", 4 * _size(q), ctx.work))
            return out

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            q = ctx.saved_tensors[0]
            count.launches.append(_attention("attention_backward", 8 * _size(q), 2.5 * ctx.work))
            return torch.empty_like(q), torch.empty_like(q), torch.empty_like(q)

    before = nn.functional.scaled_dot_product_attention
    nn.functional.scaled_dot_product_attention = lambda q, k, v, *_, **__: Fused.apply(q, k, v)
    try:
        yield
    finally:
        nn.functional.scaled_dot_product_attention = before


def _attention(name: str, moved: float, work: float) -> Launch:
    return Launch(name, moved if moved > resident() else 0.0, moved, work)

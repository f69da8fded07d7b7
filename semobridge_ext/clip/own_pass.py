"""A tower that no plain tensors describe, entered through the model's own forward pass.

    text    a hook puts the learned rows where the token embeddings of the placeholder stood
    image   a hook puts them in place of the patch embeddings of an empty image

The pass runs in a twin: the same modules once more over the same memory, in evaluation mode and without
weight gradients, so that the caller's model keeps its mode, its hooks and its flags, and may be used by
another thread meanwhile. Half weights are widened to float32 in the twin, as the engine reads them.
"""

from __future__ import annotations

import copy
import re
import weakref
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from semobridge_ext import _errors
from semobridge_ext._engines.tower_descent.model import OwnRows, OwnTower
from semobridge_ext.clip.adapter import Adapter
from semobridge_ext.clip.blocks import refuse
from semobridge_ext.clip.template import placed

_WITHOUT = "compute features with the model itself, or use a transformer whose embedding is a layer"
_SAMPLES = 2  # of the pass that finds out what a model makes of learned rows
_HALVES = (torch.float16, torch.bfloat16)

Run = Callable[[Tensor], Tensor]  # [S, R, T] -> [S, D]
Place = Callable[[Tensor, Tensor], Tensor]  # (the layer's rows, learned rows [S, R, T]) -> rows


class OwnPass(NamedTuple):
    tower: OwnTower
    rows: OwnRows
    run: Run


def _wide(value: Tensor) -> Tensor:
    value = value.detach()
    return value.float() if value.dtype in _HALVES else value


def _twin(adapter: Adapter) -> Adapter:
    """The model's modules over the same weights."""
    memo: dict[int, Any] = {}
    for parameter in adapter.model.parameters():
        memo[id(parameter)] = nn.Parameter(_wide(parameter), requires_grad=False)
    for buffer in adapter.model.buffers():
        memo[id(buffer)] = _wide(buffer)
    try:
        model = copy.deepcopy(adapter.model, memo)
    except (RuntimeError, TypeError, AttributeError, ValueError) as error:
        what = f"{adapter.kind}, whose modules cannot be copied ({error})"
        raise refuse(adapter.function, what, _WITHOUT) from error
    return type(adapter)(adapter.function, model.eval())


class _Entered:
    """The twin's pass with learned rows behind one layer."""

    def __init__(self, layer: nn.Module, place: Place, run: Callable[[int], Tensor]) -> None:
        self._run, self._place = run, place
        self._now: Tensor | None = None
        self._calls = 0
        # Weakly: the twin of half weights is a copy, and is to go with whoever runs it.
        held = weakref.ref(self)

        def hook(module: nn.Module, inputs: Any, out: Tensor) -> Tensor | None:
            entered = held()
            return None if entered is None else entered._hook(module, inputs, out)

        layer.register_forward_hook(hook)

    def _hook(self, _module: nn.Module, _inputs: Any, out: Tensor) -> Tensor | None:
        self._calls += 1
        return None if self._now is None else self._place(out, self._now)

    def __call__(self, tokens: Tensor) -> Tensor:  # [S, R, T] -> [S, D]
        self._now, self._calls = tokens, 0
        try:
            with torch.autocast(tokens.device.type, enabled=False):
                out = self._run(len(tokens))
        finally:
            self._now = None
        return out.to(tokens.dtype)

    def probe(self, function: str, name: str, vectors: int, width: int, like: Tensor) -> int:
        """The features' width D, if the model feels what is learned in it."""
        generator = torch.Generator().manual_seed(0)
        draw = torch.randn(_SAMPLES, vectors, width, generator=generator).to(like)
        with torch.inference_mode(False), torch.enable_grad():
            v = draw.clone().requires_grad_()
            out = self(v)
            if self._calls != 1:
                raise refuse(function, f"{name}, which embeds its input {self._calls} times", _WITHOUT)
            if not out.requires_grad:
                raise refuse(function, f"{name}, whose pass records no gradient", _WITHOUT)
            # Along some direction: CoCa's features have length one, whatever is learned.
            toward = torch.arange(1, out.shape[1] + 1, device=out.device).cos().to(out)
            (grad,) = torch.autograd.grad((out @ toward).sum(), v)
        if not bool((grad != 0).any()):
            contract, got = "feel what is learned in it", f"{name}, whose feature does not depend on it"
            raise ValueError(
                _errors.message(function, "model", contract, got, "put {} before the pooled position")
            )
        return out.shape[1]


def _own_tower(adapter: Adapter, side: str, width: int, features: int) -> OwnTower:
    model = adapter.model
    weights = (*model.named_parameters(), *model.named_buffers())
    structure = re.sub(r" at 0x[0-9a-f]+", "", repr(model))
    named = tuple((name, value.detach()) for name, value in weights)
    double = _first(adapter).dtype == torch.float64
    return OwnTower(f"{adapter.kind}, its own {side} pass", width, features, double, structure, named)


def _first(adapter: Adapter) -> Tensor:
    """An empty tensor of the dtype and device that learned rows have."""
    first = next(adapter.model.parameters())
    dtype = torch.float64 if first.dtype == torch.float64 else torch.float32
    return torch.empty(0, dtype=dtype, device=first.device)


def _expanded(inputs: Any, samples: int) -> Any:
    if isinstance(inputs, Mapping):
        return {name: value.expand(samples, *value.shape[1:]) for name, value in inputs.items()}
    return inputs.expand(samples, *inputs.shape[1:])


# -- text ----------------------------------------------------------------------------------------------


def _text_inputs(
    adapter: Adapter, tokenizer: Any, template: str, num_tokens: int
) -> tuple[Any, list[int]]:  # one sample for encode_text, and the placeholder's positions in it
    lengths = [adapter.context_length, getattr(tokenizer, "context_length", None)]
    length = min((n for n in lengths if isinstance(n, int) and n > 0), default=77)
    found = placed(adapter.function, tokenizer, template, num_tokens, length)
    inputs = adapter.template_inputs(tokenizer, found)
    ids = (inputs["input_ids"] if isinstance(inputs, Mapping) else inputs)[0]
    shift = len(found.ids) - len(ids)  # padding that these ids lack, on the right or on the left
    for skipped in {0, shift}:
        if torch.equal(found.ids[skipped : skipped + len(ids)], ids):
            return inputs, [p - skipped for p in found.positions]
    contract = "give a text the same tokens with padding and without"
    raise ValueError(
        _errors.message(adapter.function, "tokenizer", contract, "others", "pass the model's own")
    )


def _shorter(ids: Tensor, positions: list[int]) -> Tensor:  # [1, L] -> [1, ≤ L]
    """Without the padding but for one of it: an end of text may be what a tokenizer pads with."""
    same = ids[0] == ids[0, -1]
    start = len(same) - int(same.flip(0).int().cumprod(0).sum())
    return ids[:, : max(start, *positions) + 1]


def text_pass(adapter: Adapter, template: str, num_tokens: int, tokenizer: Any) -> OwnPass:
    """The text side of a model with ``num_tokens`` learned rows in place of ``{}``.

    Padding is left out where that changes nothing, which is found by trying.
    """
    layer = adapter.token_layer()
    if not isinstance(layer, nn.Module):
        raise refuse(adapter.function, f"{adapter.kind} without a layer of token embeddings", _WITHOUT)
    if tokenizer is None:
        tokenizer = adapter.default_tokenizer()
    inputs, positions = _text_inputs(adapter, tokenizer, template, num_tokens)
    twin, like = _twin(adapter), _first(adapter)
    inner = twin.token_layer()
    assert inner is not None
    inputs = (
        {name: torch.as_tensor(value).to(like.device) for name, value in inputs.items()}
        if isinstance(inputs, Mapping)
        else inputs.to(like.device)
    )

    def place(rows: Tensor, tokens: Tensor) -> Tensor:  # [S, L, T]
        rows = rows.clone()
        rows[:, positions] = tokens.to(rows.dtype)
        return rows

    def entered(own: Any) -> _Entered:
        return _Entered(inner, place, lambda samples: twin.encode_text(_expanded(own, samples)))

    run = entered(inputs)
    width = _width_of(layer)
    name = f"{adapter.kind}, its own text pass"
    features = run.probe(adapter.function, name, num_tokens, width, like)
    if isinstance(inputs, Tensor) and len(short := _shorter(inputs, positions)[0]) < inputs.shape[1]:
        shorter = _Entered(inner, place, lambda samples: twin.encode_text(_expanded(short[None], samples)))
        if _agree(run, shorter, num_tokens, width, like):
            run, inputs = shorter, short[None]
    ids = inputs["input_ids"] if isinstance(inputs, Mapping) else inputs
    source = tuple(positions.index(i) if i in positions else -1 for i in range(ids.shape[1]))
    named = inputs.items() if isinstance(inputs, Mapping) else [("ids", inputs)]
    rows = OwnRows(source, tuple((n, v[0].cpu()) for n, v in named))
    return OwnPass(_own_tower(adapter, "text", width, features), rows, run)


def _width_of(layer: nn.Module) -> int:
    weight: Any = layer.weight
    return int(weight.shape[1])


def _agree(whole: Run, shorter: Run, vectors: int, width: int, like: Tensor) -> bool:
    """Whether two passes give the same features to rounding."""
    generator = torch.Generator().manual_seed(1)
    draw = torch.randn(_SAMPLES, vectors, width, generator=generator).to(like)
    with torch.no_grad():
        want = whole(draw)
        try:
            found = shorter(draw)
        except (RuntimeError, ValueError, IndexError):  # a model of one length
            return False
    slack = 64 * torch.finfo(want.dtype).eps * float(want.norm(dim=1).max())
    return found.shape == want.shape and float((found - want).abs().max()) <= slack


# -- vision --------------------------------------------------------------------------------------------


class _Patches(NamedTuple):
    """What a layer makes of an image: patch rows in one of three layouts."""

    layout: str  # rows [S, U, V], last [S, h, w, V] or first [S, V, h, w]
    number: int  # U
    width: int  # V


def _patches_of(adapter: Adapter, layer: nn.Module, out: Any) -> _Patches:
    shape = tuple(out.shape) if isinstance(out, Tensor) else ()
    if len(shape) == 3:
        return _Patches("rows", shape[1], shape[2])
    width = getattr(layer, "embed_dim", getattr(getattr(layer, "proj", None), "out_channels", None))
    if len(shape) == 4 and not isinstance(layer, nn.Conv2d) and shape[3] == width:
        return _Patches("last", shape[1] * shape[2], shape[3])
    if len(shape) == 4 and (isinstance(layer, nn.Conv2d) or shape[1] == width):
        return _Patches("first", shape[2] * shape[3], shape[1])
    what = f"{adapter.vision_kind} with patch embeddings of another form ({type(layer).__name__})"
    raise refuse(adapter.function, what, _WITHOUT)


def vision_pass(adapter: Adapter, num_patches: int) -> OwnPass:
    """The vision side of a model with ``num_patches`` learned pseudo-patches."""
    size = adapter.image_format.size if adapter.patch_layer() is not None else None
    if size is None:
        module = adapter.vision_module
        kind = type(getattr(module, "trunk", module)).__name__  # open_clip wraps timm's models
        what = f"{kind}, which turns no image into patch rows"
        raise refuse(adapter.function, what, "use a vision transformer")
    twin, like = _twin(adapter), _first(adapter)
    layer = twin.patch_layer()
    assert layer is not None
    image = torch.zeros(1, 3, *size, dtype=like.dtype, device=like.device)
    seen: list[Any] = []
    handle = layer.register_forward_hook(lambda _module, _inputs, out: seen.append(out))
    with torch.no_grad():
        twin.encode_image(image)
    handle.remove()
    if not seen:
        raise refuse(adapter.function, f"{adapter.vision_kind}, which passes its patches by", _WITHOUT)
    patches = _patches_of(adapter, layer, seen[0])
    check_patches(adapter.function, num_patches, patches.number)
    source = [u * num_patches // patches.number for u in range(patches.number)]

    def place(rows: Tensor, tokens: Tensor) -> Tensor:
        own = tokens[:, source].to(rows.dtype)  # [S, U, V]
        return (own.mT if patches.layout == "first" else own).reshape(rows.shape)

    run = _Entered(layer, place, lambda samples: twin.encode_image(_expanded(image, samples)))
    name = f"{adapter.kind}, its own image pass"
    features = run.probe(adapter.function, name, num_patches, patches.width, like)
    tower = _own_tower(adapter, "image", patches.width, features)
    return OwnPass(tower, OwnRows(tuple(source), (("size", torch.tensor(size)),)), run)


def check_patches(function: str, num_patches: int, patches: int) -> None:
    if num_patches > patches:
        raise ValueError(
            f"{function}: num_patches must be at most the model's {patches} patches, got {num_patches}; "
            "1 to 4 is usual"
        )

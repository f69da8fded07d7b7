"""What every family of CLIP models tells about itself: the protocol behind semobridge_ext.clip.

A method never looks at a model. It asks ``families.adapter_of(function, model)`` for the model's adapter,
and the adapter names the model's parts in these words. To support another family, write one module with
one subclass of Adapter and register it in families.py.

Letters: B batch · L positions · U patches · T, V widths of the text and the vision tower · D feature width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from semobridge_ext import _errors
from semobridge_ext._engines.tower_descent.spec import Tower
from semobridge_ext.clip.blocks import Reader
from semobridge_ext.clip.template import Placed, default_tokenizer, fitting_ids, known_ids

TEXT_POOLINGS = ("argmax", "eos", "first", "last")


class UnknownModelError(TypeError, NotImplementedError):
    """No family recognises the model.

    A TypeError by the error contract, and a NotImplementedError because the tower functions raised that.
    """


class Projector(NamedTuple):
    """The module or matrix that ends a tower."""

    name: str  # its path, for messages
    value: Any  # a parameter [in, D], a Linear layer, or whatever else the model ends in


class TextPooling(NamedTuple):
    """Which position's row becomes the text feature. No other place decides that."""

    kind: str  # argmax: the largest id (CLIP's end of text); eos: the first `eos`; first; last
    eos: int | None = None

    def positions(self, ids: Tensor) -> Tensor:  # [.., L] -> [..] int64
        if self.kind == "argmax":
            return ids.argmax(dim=-1)
        if self.kind == "eos":
            return torch.eq(ids, -1 if self.eos is None else self.eos).int().argmax(dim=-1)
        return torch.full(ids.shape[:-1], 0 if self.kind == "first" else ids.shape[-1] - 1, device=ids.device)

    def rows(self, x: Tensor, ids: Tensor) -> Tensor:  # [B, L, T], [B, L] -> [B, T]
        return x[torch.arange(len(x), device=x.device), self.positions(ids)]


class Appended(NamedTuple):
    """A row that a text tower appends to its tokens and pools (CoCa's class embedding).

    Padding is hidden by a mask over the keys. In the weights that exist the mask lies one position too far
    to the right: the first padding is seen, and the appended row not, unless a text fills the context.
    """

    row: Tensor  # [T]
    pad: int
    shifted: bool

    def seen(self, ids: Tensor) -> list[bool]:  # [L] -> of the L + 1 keys
        tokens = [int(i) != self.pad for i in ids]
        return [True, *tokens] if self.shifted else [*tokens, True]


class TextInput(NamedTuple):
    """How token ids become the rows that enter the text tower: embedding[ids] + positions."""

    embedding: Tensor  # [words, T]
    positions: Tensor  # [L, T]
    pooling: TextPooling
    pad: int | None = None  # id that attention masks out
    appended: Appended | None = None  # what is pooled instead


class VisionInput(NamedTuple):
    """The rows that enter the vision tower beside the patch embeddings."""

    prefix: Tensor | None  # [K, V] class and register tokens, in front of the patches
    positions: Tensor  # [K + U, V]
    pooled: int | None  # the position whose row becomes the feature; None with a pooling block


class ImageFormat(NamedTuple):
    """What the model itself says about its preprocessing; None where it says nothing."""

    size: tuple[int, int] | None  # height, width
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


def both_sides(size: Any) -> tuple[int, int] | None:
    """Height and width of what a library keeps as one number or as a pair."""
    if size is None:
        return None
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


class Adapter(ABC):
    """One model, seen the same way whatever library it comes from.

    Args:
        function: the public function that asks, in whose name the adapter refuses.
        model: a model that ``recognises`` accepts.
    """

    supports: ClassVar[str]  # the models of this family, for messages

    def __init__(self, function: str, model: Any) -> None:
        self.function, self.model = function, model

    @classmethod
    @abstractmethod
    def recognises(cls, model: nn.Module) -> bool:
        """Whether the model is of this family. Families are asked in the order of families.py."""

    @property
    def kind(self) -> str:
        return type(self.model).__name__

    @property
    @abstractmethod
    def vision_kind(self) -> str | None:
        """Class name of the vision tower, None where there is none."""

    # -- facts ---------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def context_length(self) -> int: ...

    @property
    @abstractmethod
    def vocab_size(self) -> int: ...

    @property
    @abstractmethod
    def image_format(self) -> ImageFormat: ...

    @property
    def logit_scale(self) -> Tensor:
        """κ, exponentiated."""
        return self.model.logit_scale.detach().exp()

    @property
    def logit_bias(self) -> Tensor | None:
        """The bias of a sigmoid loss, None for a softmax loss."""
        bias = getattr(self.model, "logit_bias", None)
        return None if bias is None else bias.detach()

    # -- tokens --------------------------------------------------------------------------------------

    def default_tokenizer(self) -> Callable[..., Any]:
        """The tokenizer that is meant where none is given; ValueError where none can be known."""
        return default_tokenizer(self.function, self.vocab_size, self.context_length)

    def tokenize(self, tokenizer: Callable[..., Any], texts: Sequence[str]) -> Any:
        """What ``encode_text`` takes, [B, L] ids or a mapping of such tensors."""
        # A model that does not tell its positions takes what the tokenizer gives.
        found = fitting_ids(self.function, tokenizer, list(texts), getattr(self, "context_length", None))
        return known_ids(self.function, found, getattr(self, "vocab_size", None))

    # -- projections ---------------------------------------------------------------------------------

    @abstractmethod
    def text_projector(self) -> Projector | None:
        """What ends the text tower, None for nothing."""

    @abstractmethod
    def image_projector(self) -> Projector | None:
        """What ends the vision tower, None for nothing."""

    # -- features of one batch, raw, on the model's device and in its dtype -----------------------------

    @abstractmethod
    def encode_text(self, ids: Any) -> Tensor:  # [B, D]
        """The model's own text features."""

    @abstractmethod
    def encode_text_with_hidden(self, ids: Any) -> tuple[Tensor, Tensor]:  # [B, T], [B, D]
        """Pooled rows before the projection, and the features, in one pass."""

    @abstractmethod
    def encode_image(self, images: Any) -> Tensor:  # [B, D]
        """The model's own image features."""

    @abstractmethod
    def encode_image_hidden(self, images: Any) -> Tensor:  # [B, V]
        """Pooled rows before a linear projection."""

    @abstractmethod
    def patch_rows(self, images: Any) -> Tensor:  # [B, U, V]
        """Patch embeddings, before the positions are added."""

    # -- where learned rows enter the model's own pass -------------------------------------------------

    def token_layer(self) -> nn.Module | None:
        """The layer that turns token ids into rows [B, L, T]; None where there is none."""
        return None

    def patch_layer(self) -> nn.Module | None:
        """The layer that turns images into patch rows; None where there is none."""
        return None

    def template_inputs(self, tokenizer: Any, placed: Placed) -> Any:
        """What ``encode_text`` takes for a template."""
        return placed.ids[None]

    # -- towers --------------------------------------------------------------------------------------

    @property
    def text_module(self) -> nn.Module:
        """What runs the text tower."""
        found = getattr(self, "text", None)
        return found if isinstance(found, nn.Module) else self.model

    @property
    def vision_module(self) -> nn.Module:
        """What runs the vision tower."""
        for name in ("vision", "visual"):
            if isinstance(found := getattr(self, name, None), nn.Module):
                return found
        return self.model

    @abstractmethod
    def read_text(self, reader: Reader) -> tuple[Tower, TextInput]:
        """The text tower as plain tensors, and what its input rows are made of."""

    @abstractmethod
    def read_vision(self, reader: Reader) -> tuple[Tower, VisionInput]:
        """The vision tower as plain tensors, and what its input rows are made of."""

    # -- refusals ------------------------------------------------------------------------------------

    def unpooled(self, what: str) -> NotImplementedError:
        """The refusal of a model whose rows before the projection cannot be told."""
        remedy = "take the features before the projection from the model yourself"
        contract = "pool its tokens in a known way"
        return NotImplementedError(_errors.message(self.function, "model", contract, what, remedy))

    def unprojected(self, side: str) -> TypeError:
        """The refusal of a model without a projection where its features need one."""
        remedy = "use a model with both projections"
        contract = f"have a linear {side} projection"
        return TypeError(
            _errors.message(self.function, "model", contract, f"{self.kind} without one", remedy)
        )


def capture(
    module: nn.Module, run: Callable[[], Tensor], *, before: bool
) -> tuple[Tensor, Tensor]:  # input (before) or output of `module` in one run, and what the run returned
    held: list[Tensor] = []
    hook = (
        module.register_forward_pre_hook(lambda _, inputs: held.append(inputs[0]))
        if before
        else module.register_forward_hook(lambda _, inputs, output: held.append(output))
    )
    try:
        returned = run()
    finally:
        hook.remove()
    return held[-1], returned

"""open_clip's CLIP and CustomTextCLIP: text transformers, its own vision transformer, timm trunks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from semobridge_ext._engines.tower_descent.spec import Linear, Tower
from semobridge_ext.clip import timm
from semobridge_ext.clip.adapter import (
    TEXT_POOLINGS,
    Adapter,
    Appended,
    ImageFormat,
    Projector,
    TextInput,
    TextPooling,
    VisionInput,
    both_sides,
    capture,
)
from semobridge_ext.clip.blocks import Reader, resblocks


class OpenClip(Adapter):
    """CLIP keeps its text tower in the model itself, CustomTextCLIP and CoCa in ``model.text``."""

    supports = "open_clip CLIP or CustomTextCLIP"

    @classmethod
    def recognises(cls, model: nn.Module) -> bool:
        parts = ("visual", "text", "token_embedding", "text_projection", "encode_image", "encode_text")
        return any(hasattr(model, part) for part in parts)

    @property
    def text(self) -> Any:
        """The module that holds the text tower."""
        text = getattr(self.model, "text", None)
        return text if isinstance(text, nn.Module) else self.model

    @property
    def visual(self) -> Any:
        return getattr(self.model, "visual", None)

    @property
    def vision_kind(self) -> str | None:
        return None if self.visual is None else type(self.visual).__name__

    # -- facts ---------------------------------------------------------------------------------------

    @property
    def context_length(self) -> int:
        positions = getattr(self.text, "positional_embedding", None)
        if positions is None:
            # T5's positions are relative, and open_clip says 0: 77 is what its tokenizers give then.
            return self.text.context_length or 77
        # CoCa's class token has the last position.
        return len(positions) - (getattr(self.text, "cls_emb", None) is not None)

    @property
    def vocab_size(self) -> int:
        embedding = getattr(self.text, "token_embedding", None)
        return self.text.vocab_size if embedding is None else len(embedding.weight)

    @property
    def image_format(self) -> ImageFormat:
        size = getattr(self.visual, "image_size", None)
        mean, std = (getattr(self.visual, f"image_{n}", None) for n in ("mean", "std"))
        return ImageFormat(both_sides(size), mean, std)

    @property
    def text_pooling(self) -> TextPooling:
        kind = getattr(self.text, "pool_type", getattr(self.text, "text_pool_type", "argmax"))
        return TextPooling(kind, getattr(self.text, "eos_id", getattr(self.text, "text_eos_id", None)))

    @property
    def image_pooling(self) -> str:
        return getattr(self.visual, "pool_type", "tok")

    @property
    def attention_mask(self) -> Tensor | None:
        return self.text.attn_mask

    # -- projections ---------------------------------------------------------------------------------

    def text_projector(self) -> Projector | None:
        owners = [("model", self.model, "text_projection")]
        if self.text is not self.model:
            owners += [("model.text", self.text, "text_projection"), ("model.text", self.text, "proj")]
        for path, owner, name in owners:
            value = getattr(owner, name, None)
            if value is not None:
                return Projector(f"{path}.{name}", value)
        return None

    def image_projector(self) -> Projector | None:
        if getattr(self.visual, "proj", None) is not None:
            return Projector("model.visual.proj", self.visual.proj)
        return timm.image_projector(self.visual) if timm.is_trunk(self.visual) else None

    # -- features ------------------------------------------------------------------------------------

    @property
    def _raw(self) -> dict[str, bool]:
        """CoCa alone normalises unless it is told."""
        return {"normalize": False} if hasattr(self.model, "text_decoder") else {}

    def encode_text(self, ids: Tensor) -> Tensor:
        return self.model.encode_text(ids, **self._raw)

    def encode_text_with_hidden(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        projector = self.text_projector()
        if projector is not None and isinstance(projector.value, nn.Linear):
            return capture(projector.value, lambda: self.encode_text(ids), before=True)
        norm, pooling = getattr(self.text, "ln_final", None), self.text_pooling
        if not isinstance(norm, nn.Module):
            raise self.unpooled(type(self.text).__name__)
        if pooling.kind not in TEXT_POOLINGS:
            raise self.unpooled(f"{type(self.text).__name__} with pooling {pooling.kind!r}")
        x, features = capture(norm, lambda: self.encode_text(ids), before=False)
        return x if x.dim() == 2 else pooling.rows(x, ids), features  # CoCa pools before the norm

    def encode_image(self, images: Tensor) -> Tensor:
        return self.model.encode_image(images, **self._raw)

    def encode_image_hidden(self, images: Tensor) -> Tensor:
        projector = self.image_projector()
        if projector is not None and isinstance(projector.value, nn.Linear):
            return capture(projector.value, lambda: self.encode_image(images), before=True)[0]
        norm, pooling = getattr(self.visual, "ln_post", None), self.image_pooling
        if not isinstance(norm, nn.Module):
            raise self.unpooled(str(self.vision_kind))
        x = capture(norm, lambda: self.encode_image(images), before=False)[0]
        if x.dim() == 2:  # pooled before the norm: OpenAI's clip, final_ln_after_pool
            return x
        contrastive = getattr(self.visual, "attn_pool_contrastive", None)
        if pooling not in ("tok", "avg") or contrastive is not None:
            raise self.unpooled(f"{self.vision_kind} with pooling {pooling!r}")
        return x[:, 0] if pooling == "tok" else x[:, 1:].mean(dim=1)

    def patch_rows(self, images: Tensor) -> Tensor:
        if timm.is_trunk(self.visual):
            return timm.patch_rows(self.visual, images)
        return self.visual.conv1(images).flatten(2).transpose(1, 2)

    # -- where learned rows enter the model's own pass -------------------------------------------------

    def token_layer(self) -> nn.Module | None:
        own = getattr(self.text, "token_embedding", None)
        wrapped = getattr(getattr(self.text, "transformer", None), "get_input_embeddings", None)
        return own if own is not None or wrapped is None else wrapped()

    def patch_layer(self) -> nn.Module | None:
        if timm.is_trunk(self.visual):
            return getattr(self.visual.trunk, "patch_embed", None)
        # A ResNet has a first convolution, too, but what leaves it are no patches of a transformer.
        return getattr(self.visual, "conv1", None) if hasattr(self.visual, "transformer") else None

    # -- towers --------------------------------------------------------------------------------------

    def _is_causal(self, reader: Reader) -> bool:
        mask = self.attention_mask
        if mask is None:
            return False
        if not torch.equal(mask, torch.full_like(mask, float("-inf")).triu(1)):
            raise reader.refuse("an attention mask that is neither causal nor absent")
        return True

    def _text_projection(self, reader: Reader) -> Linear | None:
        value = self.text.text_projection
        if value is None:
            return None
        if isinstance(value, nn.Linear):
            return reader.linear(value, "text_projection")
        return Linear(reader.tensor(value), None)

    def _appended(self, reader: Reader) -> Appended | None:
        row = getattr(self.text, "cls_emb", None)
        if row is None:
            return None
        # Before open_clip had both masks it had the one that its weights were trained with.
        shifted = not getattr(self.text, "correct_cls_mask", False)
        return Appended(reader.tensor(row), self.text.pad_id, shifted)

    def read_text(self, reader: Reader) -> tuple[Tower, TextInput]:
        text, pooling = self.text, self.text_pooling
        kind = self.kind if text is self.model else f"{self.kind}.{type(text).__name__}"
        if not hasattr(text, "token_embedding") or not hasattr(text, "ln_final"):
            raise reader.refuse(kind)
        appended = self._appended(reader)
        if appended is not None and not reader.takes_appended:
            raise reader.refuse(f"{kind} with a class embedding (CoCa)")
        blocks, heads, activation = resblocks(reader, text.transformer.resblocks)
        tower = Tower(
            name=kind,
            heads=heads,
            activation=activation,
            causal=self._is_causal(reader),
            blocks=blocks,
            norm_final=reader.norm(text.ln_final, "ln_final"),
            projection=self._text_projection(reader),
        )
        if pooling.kind not in TEXT_POOLINGS:
            raise reader.refuse(f"{kind} with text pooling {pooling.kind!r}")
        pad = text.pad_id if getattr(text, "use_pad_mask", False) else None
        return tower, TextInput(
            text.token_embedding.weight, text.positional_embedding, pooling, pad, appended
        )

    def read_vision(self, reader: Reader) -> tuple[Tower, VisionInput]:
        visual = self.visual
        if visual is None:
            raise reader.refuse(self.kind)
        if timm.is_trunk(visual):
            return timm.read_vision(reader, visual)
        kind = type(visual).__name__
        if not hasattr(visual, "class_embedding") or not hasattr(visual, "ln_pre"):
            raise reader.refuse(kind)
        if getattr(visual, "attn_pool", None) is not None:
            raise reader.refuse(f"{kind} with an attentional pooler (CoCa)")
        if self.image_pooling != "tok":
            raise reader.refuse(f"{kind} with pooling {self.image_pooling!r}")
        blocks, heads, activation = resblocks(reader, visual.transformer.resblocks)
        tower = Tower(
            name=kind,
            heads=heads,
            activation=activation,
            causal=False,
            blocks=blocks,
            norm_pre=reader.norm(visual.ln_pre, "ln_pre"),
            norm_final=reader.norm(visual.ln_post, "ln_post"),
            projection=None if visual.proj is None else Linear(reader.tensor(visual.proj), None),
        )
        prefix = reader.tensor(visual.class_embedding).reshape(1, -1)
        return tower, VisionInput(prefix, reader.tensor(visual.positional_embedding), 0)

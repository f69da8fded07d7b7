"""Hugging Face's CLIPModel, and models of transformers that share its towers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from semobridge_ext._engines.tower_descent.spec import Linear, Tower
from semobridge_ext.clip.adapter import (
    Adapter,
    ImageFormat,
    Projector,
    TextInput,
    TextPooling,
    VisionInput,
    both_sides,
    capture,
)
from semobridge_ext.clip.blocks import Reader, hf_blocks
from semobridge_ext.clip.template import Placed, is_hugging_face, known_ids


class HuggingFace(Adapter):
    """Towers lie in ``model.text_model`` and ``model.vision_model``, projections in the model itself."""

    supports = "Hugging Face CLIPModel"

    @classmethod
    def recognises(cls, model: nn.Module) -> bool:
        return any(hasattr(model, name) for name in ("text_model", "vision_model", "visual_projection"))

    @property
    def text(self) -> Any:
        return getattr(self.model, "text_model", None)

    @property
    def vision(self) -> Any:
        return getattr(self.model, "vision_model", None)

    @property
    def vision_kind(self) -> str | None:
        return None if self.vision is None else type(self.vision).__name__

    # -- facts ---------------------------------------------------------------------------------------

    @property
    def _has_clip_text(self) -> bool:
        """Whether the text tower is CLIP's own, and not BERT's (ALIGN) or RoBERTa's (AltCLIP)."""
        return hasattr(getattr(self.text, "embeddings", None), "token_embedding")

    @property
    def context_length(self) -> int:
        if not self._has_clip_text:
            return int(self.text.config.max_position_embeddings)
        return len(self.text.embeddings.position_embedding.weight)

    @property
    def vocab_size(self) -> int:
        weight = getattr(self.token_layer(), "weight", None)
        return int(self.text.config.vocab_size) if weight is None else len(weight)

    @property
    def image_format(self) -> ImageFormat:
        """The processor, not the model, knows mean and deviation."""
        return ImageFormat(both_sides(getattr(self.vision.config, "image_size", None)))

    @property
    def text_pooling(self) -> TextPooling:
        eos = getattr(self.text, "eos_token_id", None)
        if eos is None:
            return TextPooling("first")
        # CLIP's configurations from before the id was corrected say 2, and CLIP then takes the largest id. In
        # MetaCLIP 2's vocabulary 2 is the end of the text.
        return TextPooling("argmax" if eos == 2 and not self._is_metaclip_2 else "eos", eos)

    @property
    def _is_metaclip_2(self) -> bool:
        return str(getattr(self.text.config, "model_type", "")).startswith("metaclip_2")

    def default_tokenizer(self) -> Callable[..., Any]:
        if self._has_clip_text and not self._is_metaclip_2:
            return super().default_tokenizer()
        raise ValueError(
            f"{self.function}: tokenizer must be given for {self.kind}, whose words are not CLIP's, "
            "got None; pass the one that belongs to the model"
        )

    def tokenize(self, tokenizer: Any, texts: Sequence[str]) -> Any:
        if not is_hugging_face(tokenizer):
            return known_ids(self.function, tokenizer(list(texts)), self.vocab_size)
        length = self.context_length
        return tokenizer(list(texts), padding=True, truncation=True, max_length=length, return_tensors="pt")

    # -- projections ---------------------------------------------------------------------------------

    def text_projector(self) -> Projector | None:
        value = getattr(self.model, "text_projection", None)
        return None if value is None else Projector("model.text_projection", value)

    def image_projector(self) -> Projector | None:
        value = getattr(self.model, "visual_projection", None)
        return None if value is None else Projector("model.visual_projection", value)

    # -- features ------------------------------------------------------------------------------------

    def encode_text(self, ids: Any) -> Tensor:
        return self.encode_text_with_hidden(ids)[1]

    def encode_text_with_hidden(self, ids: Any) -> tuple[Tensor, Tensor]:
        projector = self.text_projector()
        if projector is None:
            raise self.unprojected("text")
        inputs = dict(ids) if isinstance(ids, Mapping) else {"input_ids": ids}
        # The model's own pass says which row its projection reads: CLIP's pooled one, ALIGN's first.
        own = getattr(self.model, "get_text_features", None)
        if own is None or not isinstance(projector.value, nn.Linear):
            pooled = self.text(**inputs).pooler_output
        else:
            pooled = capture(projector.value, lambda: own(**inputs), before=True)[0]
        return pooled, projector.value(pooled)

    def encode_image(self, images: Any) -> Tensor:
        projector = self.image_projector()
        if projector is not None:
            return projector.value(self.encode_image_hidden(images))
        own = getattr(self.model, "get_image_features", None)  # ALIGN's pooled rows are its features
        if own is None:
            raise self.unprojected("image")
        out = own(**(dict(images) if isinstance(images, Mapping) else {"pixel_values": images}))
        return out if isinstance(out, Tensor) else out.pooler_output

    def encode_image_hidden(self, images: Any) -> Tensor:
        inputs = dict(images) if isinstance(images, Mapping) else {"pixel_values": images}
        return self.vision(**inputs).pooler_output

    def patch_rows(self, images: Tensor) -> Tensor:
        return self.vision.embeddings.patch_embedding(images).flatten(2).transpose(1, 2)

    # -- where learned rows enter the model's own pass -------------------------------------------------

    def token_layer(self) -> nn.Module | None:
        embeddings = getattr(self.text, "embeddings", None)
        for name in ("token_embedding", "word_embeddings"):
            if isinstance(found := getattr(embeddings, name, None), nn.Module):
                return found
        try:
            return self.text.get_input_embeddings()
        except (AttributeError, NotImplementedError):  # transformers knows it of most models, not of all
            return None

    def patch_layer(self) -> nn.Module | None:
        embeddings = getattr(self.vision, "embeddings", None)
        own = getattr(embeddings, "patch_embedding", None)
        return getattr(getattr(embeddings, "patch_embeddings", None), "projection", own)

    def template_inputs(self, tokenizer: Any, placed: Placed) -> Any:
        # With the mask over the padding, which BERT-like towers attend to without it.
        if is_hugging_face(tokenizer):
            return self.tokenize(tokenizer, [placed.text])
        return placed.ids[None]

    # -- towers --------------------------------------------------------------------------------------

    def _text_input(self) -> TextInput:
        embeddings = self.text.embeddings
        return TextInput(
            embeddings.token_embedding.weight, embeddings.position_embedding.weight, self.text_pooling
        )

    def read_text(self, reader: Reader) -> tuple[Tower, TextInput]:
        text, projector = self.text, self.text_projector()
        if not hasattr(text, "final_layer_norm") or hasattr(text, "head"):
            raise reader.refuse(self.kind)
        blocks, heads, activation = hf_blocks(reader, text.encoder.layers)
        projection: Linear | None = None
        if projector is not None:
            projection = reader.linear(projector.value, projector.name.removeprefix("model."))
        tower = Tower(
            name=self.kind,
            heads=heads,
            activation=activation,
            causal=True,
            blocks=blocks,
            norm_final=reader.norm(text.final_layer_norm, "final_layer_norm"),
            projection=projection,
        )
        return tower, self._text_input()

    def read_vision(self, reader: Reader) -> tuple[Tower, VisionInput]:
        vision, projector = self.vision, self.image_projector()
        if not hasattr(vision, "pre_layrnorm") or not hasattr(vision.embeddings, "class_embedding"):
            raise reader.refuse(self.kind)
        if projector is None:
            raise reader.refuse(f"{self.kind} without a projection")
        blocks, heads, activation = hf_blocks(reader, vision.encoder.layers)
        tower = Tower(
            name=self.kind,
            heads=heads,
            activation=activation,
            causal=False,
            blocks=blocks,
            norm_pre=reader.norm(vision.pre_layrnorm, "pre_layrnorm"),
            norm_final=reader.norm(vision.post_layernorm, "post_layernorm"),
            projection=reader.linear(projector.value, "visual_projection"),
        )
        embeddings = vision.embeddings
        prefix = reader.tensor(embeddings.class_embedding).reshape(1, -1)
        return tower, VisionInput(prefix, reader.tensor(embeddings.position_embedding.weight), 0)

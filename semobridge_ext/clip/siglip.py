"""Hugging Face's SiglipModel and Siglip2Model: bidirectional text, attention pooling of the image.

    text   last row · W + b                                   no mask, padding included
    image  x + MLP(LN(x)),  x = attention(probe, LN(rows))    no projection of its own

The text head has a bias and the image tower ends in no matrix, so ``Bridge.from_clip`` and
``IsoCLIP.from_clip`` refuse these models (see ``clip.text_projection``). Features, class texts, ``oti`` and
``ovi`` are supported.

SigLIP 2 comes in two forms. Fixed resolutions are SiglipModel. Siglip2Model (NaFlex) reads patches
[B, U, 3·p²] with a mask and spatial shapes: images [B, 3, H, W] are cut into patches here, and the mapping
that the processor returns, with an aspect ratio for each image, is passed on as it is. A tower for ``ovi``
stands on the square grid of the learned positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from semobridge_ext import _errors
from semobridge_ext._engines.tower_descent.spec import Block, Linear, Tower
from semobridge_ext.clip.adapter import ImageFormat, Projector, TextInput, TextPooling, VisionInput
from semobridge_ext.clip.blocks import Blocks, Reader, hf_blocks, pooling_block
from semobridge_ext.clip.hugging_face import HuggingFace
from semobridge_ext.clip.template import is_hugging_face, known_ids


class Siglip(HuggingFace):
    supports = "Hugging Face SiglipModel or Siglip2Model"

    @classmethod
    def recognises(cls, model: nn.Module) -> bool:
        kind = getattr(getattr(model, "config", None), "model_type", None)
        return (
            kind in ("siglip", "siglip2") and hasattr(model, "text_model") and hasattr(model, "vision_model")
        )

    @property
    def _takes_patches(self) -> bool:
        return isinstance(self.vision.embeddings.patch_embedding, nn.Linear)

    @property
    def _grid(self) -> int:
        """Patches a side of the learned positions."""
        return round(len(self.vision.embeddings.position_embedding.weight) ** 0.5)

    # -- facts ---------------------------------------------------------------------------------------

    @property
    def image_format(self) -> ImageFormat:
        side = self._grid * self.vision.config.patch_size
        return ImageFormat((side, side))

    @property
    def text_pooling(self) -> TextPooling:
        return TextPooling("last")

    def default_tokenizer(self) -> Any:
        remedy = "pass AutoTokenizer.from_pretrained of the model's checkpoint"
        contract = f"be given for a {self.kind}"
        raise ValueError(_errors.message(self.function, "tokenizer", contract, "None", remedy))

    def tokenize(self, tokenizer: Any, texts: Sequence[str]) -> Any:
        if not is_hugging_face(tokenizer):
            return known_ids(self.function, tokenizer(list(texts)), self.vocab_size)
        # The model was trained on texts padded to the full context, with no mask over the padding.
        ids = tokenizer(
            list(texts),
            padding="max_length",
            truncation=True,
            max_length=self.context_length,
            return_tensors="pt",
        )
        return ids["input_ids"]

    # -- projections ---------------------------------------------------------------------------------

    def text_projector(self) -> Projector | None:
        return Projector("model.text_model.head", self.text.head)

    def image_projector(self) -> Projector | None:
        return None

    # -- features ------------------------------------------------------------------------------------

    def encode_text_with_hidden(self, ids: Any) -> tuple[Tensor, Tensor]:
        inputs = dict(ids) if isinstance(ids, Mapping) else {"input_ids": ids}
        out = self.text(**inputs)
        return self.text_pooling.rows(out.last_hidden_state, inputs["input_ids"]), out.pooler_output

    def encode_image(self, images: Any) -> Tensor:
        if not self.vision.config.vision_use_head:
            raise self.unpooled(f"{self.kind} without a pooling head")
        if isinstance(images, Mapping):
            inputs = dict(images)
        elif self._takes_patches:
            inputs = self._patches(images)
        else:
            inputs = {"pixel_values": images}
        out = self.model.get_image_features(**inputs)
        return out if isinstance(out, Tensor) else out.pooler_output  # a bare tensor before transformers 5

    def encode_image_hidden(self, images: Any) -> Tensor:
        raise self.unprojected("image")

    def _patches(self, images: Tensor) -> dict[str, Tensor]:
        """[B, 3, H, W] as Siglip2Model's own processor cuts it: rows of (y, x, channel)."""
        size, (batch, channels, height, width) = self.vision.config.patch_size, images.shape
        if height % size or width % size:
            contract = f"have sides that are multiples of {size}"
            remedy = "resize them, or pass what the model's processor returns"
            raise ValueError(_errors.message(self.function, "images", contract, images, remedy))
        rows, columns = height // size, width // size
        cut = images.reshape(batch, channels, rows, size, columns, size).permute(0, 2, 4, 3, 5, 1)
        return {
            "pixel_values": cut.reshape(batch, rows * columns, -1),
            "pixel_attention_mask": torch.ones(
                batch, rows * columns, dtype=torch.int64, device=images.device
            ),
            "spatial_shapes": torch.tensor([[rows, columns]], device=images.device).expand(batch, 2),
        }

    def patch_rows(self, images: Any) -> Tensor:
        if not self._takes_patches:
            return super().patch_rows(images)
        inputs = images if isinstance(images, Mapping) else self._patches(images)
        return self.vision.embeddings.patch_embedding(inputs["pixel_values"])

    # -- towers --------------------------------------------------------------------------------------

    def read_text(self, reader: Reader) -> tuple[Tower, TextInput]:
        blocks, heads, activation = hf_blocks(reader, self.text.encoder.layers)
        tower = Tower(
            name=self.kind,
            heads=heads,
            activation=activation,
            causal=False,
            blocks=blocks,
            norm_final=reader.norm(self.text.final_layer_norm, "final_layer_norm"),
            projection=reader.linear(self.text.head, "head"),
        )
        return tower, self._text_input()

    def _pooling_block(self, reader: Reader, trunk: Blocks) -> Block:
        """The head's probe is a constant, so its query is one too."""
        head = self.vision.head
        attention, width = head.attention, head.probe.shape[-1]
        if attention.num_heads != trunk.heads:
            raise reader.refuse("attention pooling with other heads than the blocks")
        if reader.activation(head.mlp.activation_fn) != trunk.activation:
            raise reader.refuse("attention pooling with another activation than the blocks")
        weight, bias = reader.tensor(attention.in_proj_weight).T, reader.tensor(attention.in_proj_bias)
        query = reader.tensor(head.probe).reshape(-1) @ weight[:, :width] + bias[:width]
        return pooling_block(
            query,
            Linear(weight[:, width:], bias[width:]),
            norm1=reader.needed_norm(self.vision.post_layernorm, "post_layernorm"),
            out=reader.linear(attention.out_proj, "head.attention.out_proj"),
            norm2=reader.needed_norm(head.layernorm, "head.layernorm"),
            fc=reader.linear(head.mlp.fc1, "head.mlp.fc1"),
            proj=reader.linear(head.mlp.fc2, "head.mlp.fc2"),
        )

    def _positions(self, reader: Reader) -> Tensor:  # [U, V]
        embeddings, grid = self.vision.embeddings, self._grid
        weight = embeddings.position_embedding.weight
        if not self._takes_patches:
            return reader.tensor(weight)
        if len(weight) != grid * grid:
            raise reader.refuse(f"{self.kind} with {len(weight)} positions, which are no square grid")
        # The model resizes even to the size that they have, in float32.
        shape = torch.tensor([[grid, grid]], device=weight.device)
        square = weight.detach().reshape(grid, grid, -1)
        return reader.tensor(embeddings.resize_positional_embeddings(square, shape, grid * grid))[0]

    def read_vision(self, reader: Reader) -> tuple[Tower, VisionInput]:
        if not self.vision.config.vision_use_head:
            raise reader.refuse(f"{self.kind} without a pooling head")
        trunk = hf_blocks(reader, self.vision.encoder.layers)
        tower = Tower(
            name=self.kind,
            heads=trunk.heads,
            activation=trunk.activation,
            causal=False,
            blocks=(*trunk.blocks, self._pooling_block(reader, trunk)),
        )
        return tower, VisionInput(None, self._positions(reader), None)

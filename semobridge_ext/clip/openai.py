"""OpenAI's clip, whose parts are named as in open_clip, which grew out of it."""

from __future__ import annotations

from torch import Tensor, nn

from semobridge_ext.clip.adapter import ImageFormat, both_sides
from semobridge_ext.clip.open_clip import OpenClip


class OpenAI(OpenClip):
    """The attention mask lies in the blocks; pooling is fixed; float16 weights convert their images."""

    supports = "OpenAI's clip"

    @classmethod
    def recognises(cls, model: nn.Module) -> bool:
        # open_clip's CLIP keeps attn_mask in the model, be it None.
        text = getattr(model, "text", None)
        return hasattr(model, "token_embedding") and not hasattr(model, "attn_mask") and text is None

    @property
    def image_format(self) -> ImageFormat:
        return ImageFormat(both_sides(getattr(self.visual, "input_resolution", None)))

    @property
    def attention_mask(self) -> Tensor | None:
        return self.model.transformer.resblocks[0].attn_mask

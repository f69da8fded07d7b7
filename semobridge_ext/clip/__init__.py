"""What the methods need of a CLIP model, for open_clip, OpenAI's clip and Hugging Face."""

from semobridge_ext.clip.projections import text_projection

__all__ = ["text_projection"]

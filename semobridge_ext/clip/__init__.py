"""What the methods need of a CLIP model, for open_clip, OpenAI's clip and Hugging Face."""

from semobridge_ext.clip.projections import text_projection
from semobridge_ext.clip.text_tower import text_tower
from semobridge_ext.clip.vision_tower import vision_tower

__all__ = ["text_projection", "text_tower", "vision_tower"]

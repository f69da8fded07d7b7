"""What the methods need of a CLIP model, for open_clip, OpenAI's clip and Hugging Face."""

from semobridge_ext.clip.encode import encode_image, encode_text
from semobridge_ext.clip.projections import image_projection, text_projection
from semobridge_ext.clip.text_tower import text_tower
from semobridge_ext.clip.vision_tower import vision_tower

__all__ = ["encode_image", "encode_text", "image_projection", "text_projection", "text_tower", "vision_tower"]

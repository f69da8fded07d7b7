"""What the methods need of a CLIP model, behind one protocol (adapter.py).

Supported families, one module each::

    open_clip      CLIP and CustomTextCLIP, with its own vision transformer or a timm trunk (SigLIP)
    OpenAI's clip  with a vision transformer
    Hugging Face   CLIPModel, and models of transformers that share its towers
    Hugging Face   SiglipModel and Siglip2Model (features and inversion; their heads are not linear)
"""

from semobridge_ext.clip.encode import encode_image, encode_text
from semobridge_ext.clip.projections import image_projection, text_projection
from semobridge_ext.clip.towers import text_tower, vision_tower

__all__ = ["encode_image", "encode_text", "image_projection", "text_projection", "text_tower", "vision_tower"]
